"""The training of a teacher: torchvision's classification recipe on images held in memory or read in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchvision.transforms import v2

from utils.images import SMALL
from utils.loader import Batches, TestImages
from utils.log import Log
from utils.runtime import Runtime
from utils.state import State
from utils.training import Course, Training


@dataclass(frozen=True)
class Recipe:
    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str  # cosine or onecycle
    momentum: float
    weight_decay: float
    label_smoothing: float
    crop_padding: int
    evaluations: int  # on the test images, evenly over the epochs
    seed: int


def augmentation(size: int, crop_padding: int) -> v2.Transform:
    """RGB image -> RGB image of `size` pixels: padded crop for small ones, RandomResizedCrop above; then flip."""
    crop = [v2.Resize(size), v2.CenterCrop(size), v2.RandomCrop(size, padding=crop_padding)] if size <= SMALL else \
        [v2.RandomResizedCrop(size)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip()])


def train(model: nn.Module, batches: Batches, recipe: Recipe, runtime: Runtime, mean: tuple, std: tuple,
          test: TestImages | None = None, log: Log = Log(), state: State | None = None,
          better: Callable[[Course], None] = lambda course: None) -> Course:
    """Train `model` in place from where `state` has it; `better` is called when its top-1 on `test` is the best so far.

    Raises UserError if the loss is not finite.
    """
    passes = batches.passes(recipe.batch_size, recipe.epochs)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
                                nesterov=recipe.momentum > 0, fused=True)

    def stream(start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return batches.stream(recipe.batch_size, recipe.epochs, recipe.seed, "squeeze", start=start)

    def losses(forward: Callable, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = forward(runtime.normalised(batch[0], mean, std))
        return cross_entropy(logits.float(), batch[1].to(runtime.device, non_blocking=True), reduction="none",
                             label_smoothing=recipe.label_smoothing)

    return Training("squeeze", passes, runtime, mean, std, recipe.evaluations).run(
        model, optimizer, _schedule(optimizer, recipe, passes.steps), stream, losses, test, log, state, better)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    total = recipe.epochs * steps
    if recipe.lr_schedule == "onecycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=total + 1, pct_start=0.3)
    return CosineAnnealingLR(optimizer, total)
