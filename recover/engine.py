"""The recovery of one work unit: a batch of images, each optimised from the round in which it joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch

from recover.earlylate import EarlyLate
from recover.objectives.base import Batch, Objective
from recover.views import View, draw_views
from utils.data.geometry import Geometry
from utils.nets.frozen import frozen
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.resume import NoState, State


@dataclass(frozen=True)
class Start:
    """Where a unit begins: images (N, 3, S, S) normalised fp32, labels (N,), and each image's first iteration."""

    images: torch.Tensor
    labels: torch.Tensor
    starts: list[int]


class Engine:
    """What all units have in common: the schedule, and an objective on the device."""

    def __init__(
        self, objective: Objective, geometry: Geometry, schedule: EarlyLate, runtime: Runtime, jitter: int, steps: int
    ):
        """`geometry` says how images are normalised, `jitter` in pixels; compiled if `steps` in all units repay it."""
        self.objective = frozen(objective, runtime)
        self.geometry, self.schedule, self.runtime, self.jitter, self.steps = geometry, schedule, runtime, jitter, steps
        self._initial = {name: tensor.clone() for name, tensor in objective.state().items()}
        self._functions: dict[int, Callable] = {}

    def reset(self, *stream: object) -> None:
        """Give the objective what each unit begins with: its state, and what it draws from the unit's stream."""
        self.load_state(self._initial)
        self.objective.begin(*stream)

    def load_state(self, saved: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.objective.state().items():
            tensor.copy_(saved[name])

    def loss(self, iteration: int) -> Callable[..., torch.Tensor]:
        """(images, labels, members, iteration), tensors on the device -> the scalar loss at this iteration."""
        objective = self.objective.at(iteration)
        if id(objective) not in self._functions:

            def function(images: torch.Tensor, labels: torch.Tensor, members: torch.Tensor, now: torch.Tensor):
                return objective(Batch(images, self.geometry, labels, members, now))

            self._functions[id(objective)] = self.runtime.compiled(function, self.steps)
        return self._functions[id(objective)]


class Recovery:
    """The state of one unit: pixels, their optimiser, the views to come."""

    def __init__(self, engine: Engine, start: Start, *stream: object):
        """`stream` names the unit's random stream; its last word names the unit."""
        self.engine, self.schedule, self.runtime = engine, engine.schedule, engine.runtime
        engine.reset(*stream)
        device = self.runtime.device
        self.name = stream[-1]
        self.size = start.images.shape[-1]
        self.bounds = engine.geometry.bounds(device)
        start_of = torch.tensor(start.starts)
        # Images that start together are one parameter, so that the optimiser keeps a state of its own for each
        # group, made when the group first has a gradient, and never touches the groups that have none.
        self.starts = sorted(set(start.starts))
        self.groups = [torch.nonzero(start_of == first)[:, 0] for first in self.starts]
        self.pixels = [start.images[group].to(device).requires_grad_() for group in self.groups]
        self.members = torch.cat(self.groups).to(device)
        self.labels = start.labels.to(device)[self.members]
        self.optimizer = torch.optim.Adam(self.pixels, self.schedule.lr, betas=(0.5, 0.9), eps=1e-8, fused=True)
        self.scaler = self.runtime.grad_scaler()
        self.iteration = self.starts[0]
        scales = [self.schedule.min_scale(i) for i in range(self.schedule.iterations)]
        self.views: list[View] = draw_views(self.size, scales, engine.jitter, *stream)

    def active_groups(self, iteration: int) -> int:
        """How many groups take part in `iteration`."""
        return sum(start <= iteration for start in self.starts)

    def active_images(self, iteration: int) -> int:
        return sum(len(group) for group in self.groups[: self.active_groups(iteration)])

    def step(self) -> torch.Tensor:
        """One update of the active images; returns the loss, without waiting for the device."""
        groups, images = self.active_groups(self.iteration), self.active_images(self.iteration)
        rows, columns = self.views[self.iteration].matrices(self.size, self.runtime.device)
        batch = rows @ torch.cat(self.pixels[:groups]) @ columns
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.schedule.learning_rate(self.iteration)
        # Filled on the device, which a copy from the host would make wait.
        now = torch.full((), self.iteration, device=self.runtime.device)
        with self.runtime.autocast():
            loss = self.engine.loss(self.iteration)(
                batch.contiguous(memory_format=torch.channels_last), self.labels[:images], self.members[:images], now
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for pixels in self.pixels[:groups]:
                pixels.clamp_(*self.bounds)
        self.iteration += 1
        return loss.detach()

    def run(self, report: Callable[[int, int, float], None], state: State | None = None) -> torch.Tensor:
        """Every step that `state` does not hold yet; returns the images (N, 3, S, S), normalised fp32, in their order.

        `report` gets (image updates since the last report, iteration, loss) now and then. Raises UserError if the
        loss is not finite.
        """
        state = state or NoState()
        if saved := state.load():
            self._restore(saved)
        updates = sum(map(self.active_images, range(self.starts[0], self.iteration)))
        while self.iteration < self.schedule.iterations:
            loss = self.step()
            updates += self.active_images(self.iteration - 1)
            if self.iteration % 20 == 0 or self.iteration == self.schedule.iterations:
                report(updates, self.iteration, self._finite(loss))
                updates = 0
            state.save_if_due(lambda: self._saved(loss))
        return self.images()

    def _finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"loss is {value} at iteration {self.iteration} of unit {self.name}; nothing of it was saved; "
                f"try a smaller --lr than {self.schedule.lr} or --precision fp32"
            )
        return value

    def _saved(self, loss: torch.Tensor) -> dict[str, Any]:
        self._finite(loss)
        return {
            "iteration": self.iteration,
            "pixels": [pixels.detach() for pixels in self.pixels],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.engine.objective.state(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        with torch.no_grad():
            for pixels, kept in zip(self.pixels, saved["pixels"]):
                pixels.copy_(kept)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.engine.load_state(saved["objective"])

    def images(self) -> torch.Tensor:
        """The images as they are now, (N, 3, S, S) normalised fp32 on the CPU, in the order they came."""
        order = torch.cat(self.groups).argsort()
        return torch.cat([pixels.detach().cpu() for pixels in self.pixels])[order]
