"""The training of one student on a set of images, from scratch (DELT, section 4.1; the protocol of RDED)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from utils import ranks
from utils.loader import Passes, TestImages
from utils.log import Log
from utils.runtime import Runtime, seeded
from utils.state import NoState, State
from utils.training import Training
from validate import augment
from validate.augment import Views
from validate.protocols import Protocol


@dataclass
class Result:
    """Accuracies in percent; `curve` has one entry an epoch, with top-1 where it was measured."""

    seed: int
    top1: float
    best_top1: float
    top5: float
    seconds: float
    curve: list[dict] = field(default_factory=list)


@dataclass
class Step:
    """One mixed batch, on the device, and everything that was drawn for it."""

    images: torch.Tensor  # (B, 3, S, S) normalised
    shares: torch.Tensor  # (B, classes) of the hard labels
    order: torch.Tensor  # (B,) which images of the set
    views: torch.Tensor  # (B, 5) as Augmentation.draw has them
    mix: torch.Tensor  # (5,) as draw_mix has it

    def of(self, own: list[int]) -> "Step":
        """Some of its images."""
        return Step(self.images[own], self.shares[own], self.order[own], self.views[own], self.mix)


@dataclass(frozen=True)
class Stream:
    """The batches of one student: the same for every architecture, and whoever labels them."""

    views: Views
    protocol: Protocol
    seed: int
    num_classes: int
    runtime: Runtime
    mean: tuple
    std: tuple

    @property
    def passes(self) -> Passes:
        return self.views.passes(self.protocol.batch_size, self.protocol.epochs)

    def keys(self, epochs: range, start: int = 0) -> Iterator[tuple[tuple, list[int]]]:
        return self.passes.keys((self.seed, "student"), start, epochs)

    def draw(self, epochs: range, start: int = 0, shared: bool = True) -> Iterator[Step]:
        """The batches of these epochs, freshly drawn, but for the first `start`; `shared`: of each this rank's share."""
        steps, own = self.passes.steps, ("rank", ranks.rank()) if shared and ranks.world() > 1 else ()
        keys = self.keys(epochs, start)
        batches = self.views.batches(ranks.shares(keys) if shared else keys)
        for number, (images, labels, order, views) in enumerate(batches, start):
            with seeded(self.seed, "mix", epochs[number // steps], number % steps, *own):
                mix = augment.draw_mix(self.protocol.mix, len(images), images.shape[-1])
            yield self._step(images, labels, order, views, mix)

    def replay(self, keys: Iterable[tuple], mixes: Iterable[torch.Tensor]) -> Iterator[Step]:
        """The batches of recorded `keys` (stream, order, views), mixed as recorded."""
        for (images, labels, order, views), mix in zip(self.views.batches(keys), mixes):
            yield self._step(images, labels, order, views, mix)

    def _step(self, images: torch.Tensor, labels: torch.Tensor, order: torch.Tensor, views: torch.Tensor,
              mix: torch.Tensor) -> Step:
        labels = labels.to(self.runtime.device, non_blocking=True)
        mixed, shares = augment.mix(self.runtime.normalised(images, self.mean, self.std), labels, mix, self.num_classes)
        return Step(mixed, shares, order, views, mix)


def teacher_labels(teacher: nn.Module, stream: Stream) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mixed images (B, 3, S, S) -> softmax(teacher / T) (B, classes), fp32."""
    label = stream.runtime.compiled(teacher, stream.protocol.epochs * stream.passes.steps)

    def probabilities(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), stream.runtime.autocast():
            return softmax(label(images).float() / stream.protocol.temperature, 1)

    return probabilities


def labelled(stream: Stream, teacher: nn.Module | None, start: int = 0) -> Iterator[tuple[Step, torch.Tensor]]:
    """All batches from `start` on with their targets (B, classes): the teacher's probabilities, or the mixed classes' shares."""
    label = teacher_labels(teacher, stream) if teacher else None
    for step in stream.draw(range(stream.protocol.epochs), start):
        yield step, label(step.images) if label else step.shares


def learning_rate(epoch: int, epochs: int, schedule: str = "half-cosine") -> float:
    """The share of the rate in an epoch from 0: a cosine's descent to 0, or its first half, which ends near one half."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (epochs if schedule == "cosine" else 2 * epochs)))


def train(student: nn.Module, source: Callable[[int], Iterator[tuple[Step, torch.Tensor]]], stream: Stream,
          test: TestImages | None, name: str, log: Log = Log(), state: State | None = None) -> Result:
    """Train `student` in place from where `state` has it, on the batches that `source` gives from a step on; measure it.

    Raises UserError on a bad loss.
    """
    state = state or NoState()
    protocol = stream.protocol
    optimizer = torch.optim.AdamW([{"params": [p for p in student.parameters() if p.ndim > 1],
                                    "weight_decay": protocol.weight_decay},
                                   {"params": [p for p in student.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
                                  protocol.lr, betas=(0.9, 0.999), fused=True)
    steps = stream.passes.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step // steps, protocol.epochs, protocol.lr_schedule))

    def losses(forward: Callable, batch: tuple[Step, torch.Tensor]) -> torch.Tensor:
        return _losses(forward(batch[0].images), batch[1], protocol)

    training = Training(name, stream.passes, stream.runtime, stream.mean, stream.std, protocol.evaluations)
    course = training.run(student, optimizer, schedule, source, losses, test, log, state)
    return Result(stream.seed, course.top1, course.best_top1, course.top5, round(state.seconds, 1), course.curve)


def _losses(logits: torch.Tensor, target: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """(B,) fp32. Soft: KL(student / T, teacher / T). Hard: cross-entropy to the mixed classes' shares."""
    if protocol.labels == "hard":
        return cross_entropy(logits.float(), target, reduction="none")
    return kl_div(log_softmax(logits.float() / protocol.temperature, 1), target, reduction="none").sum(1)
