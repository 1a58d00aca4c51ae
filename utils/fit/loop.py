"""The training loop that teachers and students share, run by one process or by several together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from utils.data.geometry import Geometry
from utils.data.loader import BatchSchedule, EvalBatches
from utils.fit.evaluate import accuracy
from utils.fit.loggers import Logger
from utils.run import distributed
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.progress import progress
from utils.run.resume import NoState, State, state_dicts
from utils.run.seeds import seeded


class NotFinite(UserError):
    """The loss is no number any more: nothing can be learnt at this rate."""


@dataclass
class History:
    """Accuracies in percent; `epochs` has one entry an epoch, with top-1 where it was measured.

    `numbers` are those of the processes that trained together, ascending: several where a resumed run had others.
    """

    top1: float = 0.0
    best_top1: float = 0.0
    top5: float = 0.0
    epochs: list[dict] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def processes(self) -> int | list[int]:
        """As records have it: the number of processes, or all of them where it changed."""
        return self.numbers[0] if len(self.numbers) == 1 else self.numbers

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        vars(self).update(saved)


@dataclass
class Learner:
    """What a step changes. `average` follows the model's weights and is tested in its place, where there is one."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler  # stepped with the optimiser
    average: AveragedModel | None = None

    @property
    def tested(self) -> nn.Module:
        return self.average.module if self.average else self.model

    def parts(self) -> dict[str, Any]:
        found = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {**found, "average": self.average} if self.average else found


@dataclass
class _Course:
    """How far a training has come: what is saved of it, and resumed."""

    learner: Learner
    scaler: torch.amp.GradScaler
    state: State
    total: torch.Tensor  # (), of this epoch's losses
    ended: list[tuple[int, float, torch.Tensor]] = field(default_factory=list)  # epochs, rates and totals, not yet read
    unread: int = 0  # steps since the losses were read
    history: History = field(default_factory=History)

    @property
    def parts(self) -> dict[str, Any]:
        return {**self.learner.parts(), "scaler": self.scaler, "history": self.history}

    def resume(self) -> dict[str, Any]:
        """Go to where the state has it; return the `number` of steps done and, of an `untested` epoch, its end."""
        saved = self.state.restore(self.parts) or {"number": 0, "total": 0.0}
        self.history.numbers = sorted({*self.history.numbers, distributed.get_world_size()})
        self.total.fill_(saved["total"])
        return saved

    def save_if_due(self, number: int, total: Callable[[], float], **more: Any) -> None:
        """As the state's, after `number` steps; `total()` is asked before anything else where it is due."""
        self.state.save_if_due(lambda: {"total": total(), **state_dicts(self.parts), "number": number, **more})


@dataclass(frozen=True)
class Training:
    """What is the same for all steps of a training."""

    name: str  # for messages
    schedule: BatchSchedule
    runtime: Runtime
    geometry: Geometry  # of the test images
    test: EvalBatches | None = None
    evaluations: int = 0  # on the test images, evenly over the epochs
    logger: Logger = Logger()
    on_best: Callable[[int, History], None] = lambda epoch, history: None  # called when the top-1 is the best so far
    kept: tuple[int, ...] = ()  # epochs, counted from 1, that are measured in any case
    on_kept: Callable[[int, History], None] = lambda epoch, history: None  # called after each of them
    # Of a step's batch, where it has several: one forward and backward each, whose gradients are added up.
    parts: Callable[[Any], Sequence[Any]] | None = None
    before_test: Callable[[nn.Module], None] = lambda model: None  # called with the network that is tested next
    stream: tuple = ()  # names the random streams of the networks' dropout: one for each step and rank

    def run(
        self,
        learner: Learner,
        batches: Callable[[int], Iterator[Any]],
        losses: Callable[[Callable, Any], torch.Tensor],
        state: State | None = None,
    ) -> History:
        """Train `learner` in place from where `state` has it, on the `batches` from a number on.

        `losses(forward, batch)` gives the loss of each image of this rank's batch, or of one of its `parts`, fp32
        (B,). Raises UserError if the loss is not finite, and where several ranks train a network of which a part does
        not count for it.
        """
        schedule, device = self.schedule, self.runtime.device
        per_epoch = schedule.steps_per_epoch
        course = _Course(learner, self.runtime.grad_scaler(), state or NoState(), torch.zeros((), device=device))
        saved = course.resume()
        start = saved["number"]
        network = distributed.data_parallel(learner.model, device)
        forward = self.runtime.compiled(network, schedule.steps, graphs=self.parts is None)
        learner.model.train()
        if "untested" in saved:
            self._end_epoch(course, *saved["untested"])

        with progress(
            total=schedule.epochs * schedule.images_per_epoch,
            initial=schedule.images_before(start),
            desc=self.name,
            unit="img",
        ) as bar:
            for number, batch in enumerate(batches(start), start):
                epoch, step = number // per_epoch + 1, number % per_epoch + 1
                if step == 1:
                    course.total.zero_()
                rate = learner.scheduler.get_last_lr()[0]
                self._step(course, network, partial(losses, forward), number, batch)
                bar.update(schedule.size(number))
                if step == per_epoch:
                    course.ended.append((epoch, rate, course.total.clone()))
                # Seldom, because reading the loss makes the host wait for the GPU.
                course.unread += 1
                if course.unread == 25 or step == per_epoch and (epoch == schedule.epochs or self._is_measured(epoch)):
                    mean = self._read(course, epoch, step)
                    top1 = f", top-1 {course.history.top1:.2f}" if course.history.top1 else ""
                    bar.set_postfix_str(
                        f"epoch {epoch}/{schedule.epochs}, loss {mean:.4f}, lr {rate:.4f}{top1}", refresh=False
                    )
                course.save_if_due(number + 1, lambda: self._read(course, epoch, step) * step)
        return course.history

    def _step(self, course: _Course, network: nn.Module, losses: Callable, number: int, batch: Any) -> None:
        """One update of the `network` by step `number`'s batch; its loss is added to the epoch's."""
        learner, scaler, size = course.learner, course.scaler, self.schedule.size(number)
        learner.optimizer.zero_grad(set_to_none=True)
        parts = self.parts(batch) if self.parts else [batch]
        first = 0  # of the part's images
        # Dropout and stochastic depth draw from the global generators.
        with seeded(*self.stream, "forward", number, distributed.get_rank(), device=self.runtime.device):
            for left, part in zip(reversed(range(len(parts))), parts):
                with distributed.exchanging(network, last=not left):
                    with self.runtime.autocast():
                        found = losses(part)
                        loss = distributed.global_mean(found, size, first)
                    scaler.scale(loss).backward()
                course.total += loss.detach()
                first += len(found)
        distributed.require_gradients(learner.model)
        scaler.step(learner.optimizer)
        scaler.update()
        learner.scheduler.step()
        if learner.average:
            learner.average.update_parameters(learner.model)

    def _read(self, course: _Course, epoch: int, step: int) -> float:
        """The mean loss of the epoch so far. Epochs that have ended since the last reading are noted.

        Raises UserError where a loss is not finite.
        """
        (*before, now), ended = self._mean_losses(course, epoch, step), course.ended
        course.ended, course.unread = [], 0
        for (number, rate, _), loss in zip(ended, before):
            self._end_epoch(course, {"epoch": number, "loss": loss}, rate)
        return now

    def _is_measured(self, epoch: int) -> bool:
        return epoch in evaluated_epochs(self.schedule.epochs, self.evaluations) or epoch in self.kept

    def _end_epoch(self, course: _Course, entry: dict, rate: float) -> None:
        """Measure the epoch and note it. Its steps are saved before, so that an interrupted test loses none."""
        epoch, history, per_epoch = entry["epoch"], course.history, self.schedule.steps_per_epoch
        if self._is_measured(epoch):
            save_if_due = partial(
                course.save_if_due, epoch * per_epoch, lambda: entry["loss"] * per_epoch, untested=[entry, rate]
            )
            self._measure(course.learner.tested, epoch, history, save_if_due)
            entry = {**entry, "top1": history.top1}
            course.learner.model.train()
        if epoch in self.kept:
            self.on_kept(epoch, history)
        self.logger.add(epoch, **entry, lr=rate)
        history.epochs.append(entry)

    def _mean_losses(self, course: _Course, epoch: int, step: int) -> list[float]:
        """Of the epochs that have ended, and of this one up to this step."""
        totals = distributed.all_reduce_sum(torch.stack([*(total for *_, total in course.ended), course.total]))
        places = [*((number, self.schedule.steps_per_epoch) for number, *_ in course.ended), (epoch, step)]
        found = []
        for total, (number, steps) in zip(totals.tolist(), places):
            found.append(total / distributed.get_world_size() / steps)
            if not math.isfinite(found[-1]):
                raise NotFinite(
                    f"{self.name}: loss is {found[-1]} in epoch {number}, step {steps}, and nothing of it was saved; "
                    "try a smaller --lr, or --precision fp32"
                )
        return found

    def _measure(self, model: nn.Module, epoch: int, history: History, after_batch: Callable[[], None]) -> None:
        self.before_test(model)
        is_first = not any("top1" in entry for entry in history.epochs)  # the best so far, also at 0 %
        history.top1, history.top5 = accuracy(model, self.test, self.geometry, self.runtime, after_batch)
        if is_first or history.top1 > history.best_top1:
            history.best_top1 = history.top1
            self.on_best(epoch, history)


def evaluated_epochs(epochs: int, evaluations: int) -> set[int]:
    """Which epochs, counted from 1, are measured on the test set: evenly spaced, the last one among them."""
    return {round(epochs * k / evaluations) for k in range(1, evaluations + 1)} - {0}
