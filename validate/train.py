"""The training of one student on a set of images, from scratch (DELT, section 4.1; the protocol of RDED)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from utils.evaluate import accuracy
from utils.files import UserError
from utils.images import progress
from utils.loader import Keys, TestImages
from utils.log import Log
from utils.runtime import Runtime, seeded
from utils.state import NoState, State, snapshot
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
    def steps(self) -> int:
        """Of one epoch."""
        return self.views.steps(self.protocol.batch_size)

    def keys(self, epochs: range, start: int = 0) -> Keys:
        return Keys(len(self.views.folder), self.protocol.batch_size, epochs, self.steps, (self.seed, "student"), start)

    def draw(self, epochs: range, start: int = 0) -> Iterator[Step]:
        """The batches of these epochs, freshly drawn, but for the first `start`."""
        batches = self.views.batches(self.keys(epochs, start))
        for number, (images, labels, order, views) in enumerate(batches, start):
            with seeded(self.seed, "mix", epochs[number // self.steps], number % self.steps):
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
    label = stream.runtime.compiled(teacher, stream.protocol.epochs * stream.steps)

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


def evaluated_epochs(epochs: int, evaluations: int) -> set[int]:
    """Which epochs, counted from 1, are measured on the test set: evenly spread, the last one among them."""
    return {round(epochs * k / evaluations) for k in range(1, evaluations + 1)} - {0}


def train(student: nn.Module, source: Callable[[int], Iterator[tuple[Step, torch.Tensor]]], stream: Stream, test: TestImages,
          name: str, log: Log = Log(), state: State | None = None) -> Result:
    """Train `student` in place from where `state` has it, on the batches that `source` gives from a step on; measure it.

    Raises UserError on a bad loss.
    """
    state = state or NoState()
    protocol, runtime, steps = stream.protocol, stream.runtime, stream.steps
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": protocol.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], protocol.lr, betas=(0.9, 0.999), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda epoch: learning_rate(epoch, protocol.epochs, protocol.lr_schedule))
    scaler = runtime.grad_scaler()
    forward = runtime.compiled(student, protocol.epochs * steps)
    measured = evaluated_epochs(protocol.epochs, protocol.evaluations)
    parts = {"student": student, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    saved = state.restore(parts) or {"number": 0, "total": 0.0, "result": asdict(Result(stream.seed, 0.0, 0.0, 0.0, 0.0))}
    result, total = Result(**saved["result"]), torch.tensor(saved["total"], device=runtime.device)
    student.train()

    def mean_loss(count: int) -> float:
        value = total.item() / count
        if not math.isfinite(value):
            raise UserError(f"loss is {value} in epoch {epoch + 1} of seed {stream.seed}; try a smaller --lr than {protocol.lr}")
        return value

    with progress(total=protocol.epochs * len(stream.views.folder), desc=name, unit="img",
                  initial=stream.views.images(saved["number"], protocol.batch_size)) as bar:
        for number, (step, target) in enumerate(source(saved["number"]), start=saved["number"]):
            epoch, count = number // steps, number % steps + 1
            if count == 1:
                total = torch.zeros((), device=runtime.device)
            with runtime.autocast():
                loss = _loss(forward(step.images), target, protocol)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
            bar.update(len(step.images))
            if count == steps:
                entry = {"epoch": epoch + 1, "loss": mean_loss(steps)}
                if epoch + 1 in measured:
                    result.top1, result.top5 = accuracy(student, test, runtime, stream.mean, stream.std)
                    result.best_top1 = max(result.best_top1, result.top1)
                    entry["top1"] = result.top1
                    student.train()
                log.add(epoch + 1, **entry, lr=schedule.get_last_lr()[0])
                schedule.step()
                result.curve.append(entry)
                bar.set_postfix_str(f"epoch {epoch + 1}/{protocol.epochs}, loss {entry['loss']:.4f}"
                                    f"{f', top-1 {result.top1:.2f}' if result.top1 else ''}", refresh=False)
            state.keep(lambda: {**snapshot(parts), "number": number + 1, "total": mean_loss(count) * count,
                                "result": asdict(result)})
    result.seconds = round(state.seconds, 1)
    return result


def _loss(logits: torch.Tensor, target: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    """fp32. Soft: KL(student / T, teacher / T), batch mean. Hard: cross-entropy to the mixed classes' shares."""
    if protocol.labels == "hard":
        return cross_entropy(logits.float(), target)
    return kl_div(log_softmax(logits.float() / protocol.temperature, 1), target, reduction="batchmean")
