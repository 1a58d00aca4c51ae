"""Penultimate features: what a network's last linear layer sees of an image."""

from __future__ import annotations

from typing import Callable, Iterator, Sequence

import torch
from torch import nn

from utils import memory
from utils.checkpoints import Teacher
from utils.files import UserError
from utils.images import ImageFolder, progress, resize_for_test
from utils.loader import Geometry, TestImages
from utils.runtime import Runtime


def extractor(model: nn.Module) -> nn.Module:
    """`model` without its last linear layer: images (B, 3, S, S) -> features (B, D). It is changed in place.

    Raises UserError for a network without a linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"{type(model).__name__} has no linear layer, and so no penultimate features; take another network")
    owner, _, name = linear[-1].rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())
    return model


@torch.inference_mode()
def by_class(model: nn.Module, facts: Teacher, folder: ImageFolder, runtime: Runtime, what: str, batch_size: int = 256,
             workers: int | None = None, geometry: Geometry = resize_for_test,
             labels: Sequence[int] | None = None, apply: Callable = memory.at_once) -> Iterator[tuple[int, torch.Tensor]]:
    """(label, features (n, D) fp32 on the CPU) by `model`, one class after the other; only one is held at a time.

    `facts` give the geometry and the normalisation. `labels`: which classes, all if None; a class's features do not depend
    on it. `apply`: memory.at_once or memory.in_halves.
    """
    images = TestImages(folder, facts.input_size, batch_size, workers, geometry, by_class=True)
    model = runtime.compiled(model, len(images))
    batches = {label: images.of_class(label) for label in (range(len(folder.classes)) if labels is None else labels)}
    stream = images.some([number for numbers in batches.values() for number in numbers])
    with progress(total=sum(len(folder.span(label)) for label in batches), desc=what, unit="img") as bar:
        for label, numbers in batches.items():
            held = []
            for batch, _ in (next(stream) for _ in numbers):
                with runtime.autocast():
                    found = apply(lambda images: model(runtime.normalised(images, facts.mean, facts.std)), batch)
                held.append(found.float().flatten(1).cpu())
                bar.update(len(batch))
            yield label, torch.cat(held)
