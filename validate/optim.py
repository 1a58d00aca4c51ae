"""How a student learns: optimisers, learning-rate schedules, and the average of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.fit.loop import Learner
from validate.protocols import Protocol


@dataclass(frozen=True)
class Entry:
    """An optimiser or a schedule, and what it reads of the flags that not every one reads (validate/flags.py)."""

    function: Callable
    reads: tuple[str, ...] = ()


def _adamw(groups: list[dict], protocol: Protocol) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, protocol.lr, betas=(0.9, 0.999), fused=True)


def _adam(groups: list[dict], protocol: Protocol) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, protocol.lr, betas=(0.9, 0.999), fused=True)


def _sgd(groups: list[dict], protocol: Protocol) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, protocol.lr, momentum=protocol.momentum, fused=True)


# Groups of parameters, protocol -> torch.optim.Optimizer.
OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(_adamw),
    "adam": Entry(_adam),
    "sgd": Entry(_sgd, ("momentum",)),
}


def _half_cosine(done: float, protocol: Protocol) -> float:
    """The first half of a cosine's descent, which ends at one half (RDED's code, after its authors' tuning)."""
    return 0.5 * (1 + math.cos(math.pi * done / 2))


def _cosine(done: float, protocol: Protocol) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _steps(done: float, protocol: Protocol) -> float:
    """`lr_factor` at each of `lr_steps`."""
    return protocol.lr_factor ** sum(done >= step for step in protocol.lr_steps)


def _half_cosine_linear(done: float, protocol: Protocol) -> float:
    """The half cosine; in the last sixth what it had there times the share of the epochs that is left (EDC's code)."""
    bend = 5 / 6
    return _half_cosine(done, protocol) if done <= bend else _half_cosine(bend, protocol) * (1 - done)


# Share of the epochs that are done, from 0, protocol -> share of the learning rate.
LR_SCHEDULES: dict[str, Entry] = {
    "half-cosine": Entry(_half_cosine),
    "cosine": Entry(_cosine),
    "steps": Entry(_steps, ("lr_steps", "lr_factor")),
    "half-cosine-linear": Entry(_half_cosine_linear),
}


def learning_rate(epoch: int, protocol: Protocol) -> float:
    """The share of the rate in an epoch, counted from 0."""
    return LR_SCHEDULES[protocol.lr_schedule].function(epoch / protocol.epochs, protocol)


class WeightAverage(AveragedModel):
    """The exponential moving average of a student's weights, with the student's own BatchNorm statistics.

    The update is PyTorch's own but for one thing: that one sends the number of updates to the device in each step, for
    which the host waits.
    """

    def __init__(self, student: nn.Module, decay: float):
        super().__init__(student)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        averages, weights = list(self.module.parameters()), list(model.parameters())
        if self.n_averaged == 0:  # which is on the CPU
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        self.n_averaged += 1
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))


def learner(student: nn.Module, protocol: Protocol, steps_per_epoch: int) -> Learner:
    """The student with its optimiser and schedule, and with the average of its weights where the protocol has one.

    Weight decay is for tensors of more than one dimension.
    """
    groups = [
        {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": protocol.weight_decay},
        {"params": [p for p in student.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = OPTIMIZERS[protocol.optimizer].function(groups, protocol)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step // steps_per_epoch, protocol)
    )
    average = WeightAverage(student, protocol.weight_average) if protocol.weight_average else None
    return Learner(student, optimizer, scheduler, average)
