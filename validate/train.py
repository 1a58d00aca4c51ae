"""The training of one student on a set of images, from scratch (DELT, section 4.1; the protocol of RDED)."""

from __future__ import annotations

from typing import Callable

import torch
from torch import nn

from utils.fit.loop import Training
from utils.run.resume import NoState, State
from validate.optim import learner
from validate.results import Result
from validate.stream import Stream
from validate.targets import Labelled, student_losses


def train(
    student: nn.Module,
    source: Callable[[int], Labelled],
    stream: Stream,
    training: Training,
    weights: torch.Tensor | None = None,
    state: State | None = None,
) -> Result:
    """Train `student` in place from where `state` has it, on the batches of `source` from a step on, and measure it.

    `weights` (images of the set,) weigh the images' losses. Raises UserError on a bad loss.
    """
    state = state or NoState()
    learning = learner(student, stream.protocol, stream.schedule.steps_per_epoch)
    history = training.run(learning, source, student_losses(stream.protocol, weights), state)
    seconds = round(state.seconds, 1)
    return Result(stream.seed, history.top1, history.best_top1, history.top5, seconds, history.epochs)
