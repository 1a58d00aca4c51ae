"""The training of a teacher: torchvision's classification recipe on images held in memory or read in batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torchvision.transforms import v2

from utils.files import UserError
from utils.images import SMALL, progress
from utils.loader import Batches
from utils.log import Log
from utils.runtime import Runtime
from utils.state import NoState, State, snapshot


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
    seed: int


def augmentation(size: int, crop_padding: int) -> v2.Transform:
    """RGB image -> RGB image of `size` pixels: padded crop for small ones, RandomResizedCrop above; then flip."""
    crop = [v2.Resize(size), v2.CenterCrop(size), v2.RandomCrop(size, padding=crop_padding)] if size <= SMALL else \
        [v2.RandomResizedCrop(size)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip()])


def train(model: nn.Module, batches: Batches, recipe: Recipe, runtime: Runtime, mean: tuple, std: tuple,
          log: Log = Log(), state: State | None = None) -> float:
    """Train `model` in place from where `state` has it; return the mean loss of the last epoch.

    Raises UserError if the loss is not finite.
    """
    steps = batches.steps(recipe.batch_size)
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay,
                                nesterov=recipe.momentum > 0, fused=True)
    schedule = _schedule(optimizer, recipe, steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    scaler = runtime.grad_scaler()
    forward = runtime.compiled(model, recipe.epochs * steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    state = state or NoState()
    saved = state.restore(parts) or {"number": 0, "total": 0.0}
    total = torch.tensor(saved["total"], device=runtime.device)  # of the losses of this epoch
    stream = batches.stream(recipe.batch_size, recipe.epochs, recipe.seed, "squeeze", start=saved["number"])
    model.train()

    def mean_loss(step: int) -> float:
        value = total.item() / (step + 1)
        if not math.isfinite(value):
            raise UserError(f"loss is {value} in epoch {epoch + 1}, step {step + 1}; try a smaller --lr than {recipe.lr}")
        return value

    with progress(total=recipe.epochs * len(batches.folder), initial=batches.images(saved["number"], recipe.batch_size),
                  desc="squeeze", unit="img") as bar:
        for number, (images, labels) in enumerate(stream, start=saved["number"]):
            epoch, step = divmod(number, steps)
            if step == 0:
                total = torch.zeros((), device=runtime.device)
            labels = labels.to(runtime.device, non_blocking=True)
            with runtime.autocast():
                loss = criterion(forward(runtime.normalised(images, mean, std)), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            total += loss.detach()
            bar.update(len(images))
            # Seldom, because reading the loss makes the host wait for the GPU.
            if step % 25 == 0 or step == steps - 1:
                bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, loss {mean_loss(step):.3f}, "
                                    f"lr {schedule.get_last_lr()[0]:.4f}", refresh=False)
            if step == steps - 1:
                log.add(epoch + 1, loss=mean_loss(step), lr=schedule.get_last_lr()[0])
            state.keep(lambda: {**snapshot(parts), "number": number + 1, "total": mean_loss(step) * (step + 1)})
    return total.item() / steps


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler:
    total = recipe.epochs * steps
    if recipe.lr_schedule == "onecycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=total + 1, pct_start=0.3)
    return CosineAnnealingLR(optimizer, total)
