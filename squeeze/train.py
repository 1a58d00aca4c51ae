"""The training of a teacher: torchvision's classification recipe on images held in memory or read in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR

from utils.data.loader import AugmentedBatches
from utils.fit.loop import History, Learner, Training
from utils.run.device import transfer
from utils.run.resume import State

LR_SCHEDULES = ("cosine", "onecycle", "constant")


@dataclass(frozen=True)
class Recipe:
    """The settings of a training."""

    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str
    momentum: float
    weight_decay: float
    label_smoothing: float
    crop_padding: int  # pixels
    evaluations: int  # on the test images, evenly over the epochs
    seed: int


def train(
    model: nn.Module, batches: AugmentedBatches, recipe: Recipe, training: Training, state: State | None = None
) -> History:
    """Train `model` in place from where `state` has it. Raises UserError if the loss is not finite."""
    runtime, geometry = training.runtime, training.geometry
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.lr,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )

    def stream(start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return batches.stream(recipe.batch_size, recipe.epochs, recipe.seed, "squeeze", start=start)

    def losses(forward: Callable, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        logits = forward(geometry.normalise(images, runtime.device)).float()
        labels = transfer(labels, runtime.device)
        return cross_entropy(logits, labels, reduction="none", label_smoothing=recipe.label_smoothing)

    scheduler = _scheduler(optimizer, recipe, training.schedule.steps)
    return training.run(Learner(model, optimizer, scheduler), stream, losses, state)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    if recipe.lr_schedule == "onecycle":
        # Its own cycle of the momentum would override the recipe's.
        return OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    if recipe.lr_schedule == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    return CosineAnnealingLR(optimizer, steps)
