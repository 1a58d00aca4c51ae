"""Training: the steps that teachers and students have in common, by one process or by several together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterator

import torch
from torch import nn

from utils import ranks
from utils.evaluate import accuracy
from utils.files import UserError
from utils.images import progress
from utils.loader import Passes, TestImages
from utils.log import Log
from utils.runtime import Runtime
from utils.state import NoState, State, snapshot


@dataclass
class Course:
    """How a training went: accuracies in percent; `curve` has one entry an epoch, with top-1 where it was measured."""

    top1: float = 0.0
    best_top1: float = 0.0
    top5: float = 0.0
    curve: list[dict] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        vars(self).update(saved)


@dataclass(frozen=True)
class Training:
    """What is the same for all steps: the passes, the machine, the normalisation, and what to call it in messages."""

    name: str
    passes: Passes
    runtime: Runtime
    mean: tuple
    std: tuple
    evaluations: int  # on the test set, evenly over the epochs

    def run(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
            batches: Callable[[int], Iterator[Any]], losses: Callable[[Callable, Any], torch.Tensor], test: TestImages | None,
            log: Log = Log(), state: State | None = None, better: Callable[[Course], None] = lambda course: None) -> Course:
        """Train `model` in place from where `state` has it, on the `batches` from a number on.

        `losses(forward, batch)` gives the loss of each image of this rank's batch, fp32 (B,); `schedule` is stepped with
        the optimiser; `better` is called when the top-1 on `test` is the best so far. Raises UserError if the loss is not
        finite.
        """
        passes, runtime = self.passes, self.runtime
        steps = passes.steps
        scaler, course, state = runtime.grad_scaler(), Course(), state or NoState()
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler, "course": course}
        saved = state.restore(parts) or {"number": 0, "total": 0.0}
        start, total = saved["number"], torch.tensor(saved["total"], device=runtime.device)  # of the losses of this epoch
        forward = runtime.compiled(ranks.wrapped(model, runtime.device), passes.epochs * steps)
        measured = evaluated_epochs(passes.epochs, self.evaluations)
        model.train()

        def mean_loss(epoch: int, count: int) -> float:
            value = ranks.total(total).item() / ranks.world() / count
            if not math.isfinite(value):
                raise UserError(f"{self.name}: loss is {value} in epoch {epoch}, step {count}, and nothing of it was saved; try "
                                f"a smaller --lr than {optimizer.defaults['lr']}, or --precision fp32")
            return value

        with progress(total=passes.epochs * passes.shown_in_pass, initial=passes.shown(start), desc=self.name,
                      unit="img") as bar:
            for number, batch in enumerate(batches(start), start):
                epoch, count, size = number // steps + 1, number % steps + 1, passes.size(number)
                if count == 1:
                    total = torch.zeros((), device=runtime.device)
                rate = schedule.get_last_lr()[0]
                with runtime.autocast():
                    loss = ranks.mean(losses(forward, batch), size)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                total += loss.detach()
                bar.update(size)
                # Seldom, because reading the loss makes the host wait for the GPU.
                if count % 25 == 0 or count == steps:
                    top1 = f", top-1 {course.top1:.2f}" if course.top1 else ""
                    bar.set_postfix_str(f"epoch {epoch}/{passes.epochs}, loss {mean_loss(epoch, count):.4f}, lr {rate:.4f}{top1}",
                                        refresh=False)
                if count == steps:
                    entry = {"epoch": epoch, "loss": mean_loss(epoch, count)}
                    if epoch in measured:
                        course.top1, course.top5 = accuracy(model, test, runtime, self.mean, self.std)
                        entry["top1"] = course.top1
                        if course.top1 > course.best_top1:
                            course.best_top1 = course.top1
                            better(course)
                        model.train()
                    log.add(epoch, **entry, lr=rate)
                    course.curve.append(entry)
                state.keep(lambda: {**snapshot(parts), "number": number + 1, "total": mean_loss(epoch, count) * count})
        return course


def evaluated_epochs(epochs: int, evaluations: int) -> set[int]:
    """Which epochs, counted from 1, are measured on the test set: evenly spread, the last one among them."""
    return {round(epochs * k / evaluations) for k in range(1, evaluations + 1)} - {0}
