"""Penultimate features: what a network's last linear layer sees of an image."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import nn

from utils.checkpoints import Teacher
from utils.files import UserError
from utils.images import progress
from utils.loader import TestImages
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
def by_class(model: nn.Module, facts: Teacher, images: TestImages, runtime: Runtime,
             what: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(label, features (n, D) fp32 on the CPU) by `model`, one class after the other; only one is held at a time.

    `facts` give the normalisation. An ImageFolder's images are in the order of their labels.
    """
    model = runtime.compiled(model, len(images))
    held: list[torch.Tensor] = []
    current = 0
    with progress(total=len(images.folder), desc=what, unit="img") as bar:
        for batch, labels in images:
            with runtime.autocast():
                rows = model(runtime.normalised(batch, facts.mean, facts.std)).float().flatten(1).cpu()
            for label in labels.unique().tolist():
                if label != current:
                    yield current, torch.cat(held)
                    held, current = [], label
                held.append(rows[labels == label])
            bar.update(len(batch))
    yield current, torch.cat(held)
