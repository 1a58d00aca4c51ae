"""The training of one student on a set of images, from scratch (DELT, section 4.1; the protocol of RDED)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from utils.fit.loop import Training
from utils.run.resume import NoState, State
from utils.run.seeds import seeded
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
    if stream.protocol.bn_epochs:
        training = replace(training, before_test=partial(recompute_statistics, stream))
    history = training.run(learning, source, student_losses(stream.protocol, weights), state)
    seconds = round(state.seconds, 1)
    top1, best, top5 = history.top1, history.best_top1, history.top5
    return Result(stream.seed, top1, best, top5, seconds, history.epochs, history.processes)


def recompute_statistics(stream: Stream, model: nn.Module) -> None:
    """BatchNorm's running statistics anew: the mean over further batches, by the weights as they are.

    As training leaves them they are of weights that moved meanwhile (Izmailov et al., 2018, section 3.2). Every rank
    sees whole batches: rank 0's statistics are tested.
    """
    epochs = stream.protocol.epochs
    further = range(epochs, epochs + stream.protocol.bn_epochs)
    with seeded(stream.seed, "statistics", device=stream.runtime.device), stream.runtime.autocast():
        update_bn((step.images for step in stream.draw(further, local=False)), model)
