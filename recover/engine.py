"""The recovery of one work unit: a batch of images, each optimised from the round in which it joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterable

import torch

from recover.earlylate import EarlyLate
from recover.objectives.base import Batch, Objective
from recover.resolutions import Stages, resized
from recover.settings import Settings
from recover.views import View, draw_views
from utils.data.geometry import Geometry
from utils.nets.frozen import frozen
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.resume import NoState, State

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LEARN = ("image", "difference")


@dataclass(frozen=True)
class Start:
    """Where a unit begins: images (N, 3, S, S) normalised fp32, labels (N,), and the iteration in which each joins.

    `originals` (N, tiles, 3, S, S), of collages, for objectives that need them.
    """

    images: torch.Tensor
    labels: torch.Tensor
    joins: list[int]
    originals: torch.Tensor | None = None


class Engine:
    """What all units have in common: settings, the schedule, and an objective on the device."""

    def __init__(
        self,
        objective: Objective,
        geometry: Geometry,
        schedule: EarlyLate,
        runtime: Runtime,
        settings: Settings,
        steps: int,
    ):
        """`geometry` says how images are normalised; compiled if `steps` in all units repay it."""
        self.objective = frozen(objective, runtime)
        self.geometry, self.schedule, self.runtime = geometry, schedule, runtime
        self.settings, self.steps = settings, steps
        self._initial = {name: tensor.clone() for name, tensor in objective.state().items()}
        self._functions: dict[int, Callable] = {}

    def reset(self, *stream: object) -> None:
        """Give the objective what each unit begins with: its state, and what it draws from the unit's stream."""
        self.load_state(self._initial)
        self.objective.begin(*stream)

    def load_state(self, saved: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.objective.state().items():
            tensor.copy_(saved[name])

    def optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        kind, rate, decay = self.settings.optimizer, self.schedule.lr, self.settings.weight_decay
        return OPTIMIZERS[kind](parameters, rate, betas=(0.5, 0.9), eps=1e-8, weight_decay=decay, fused=True)

    def loss(self, iteration: int) -> Callable[..., torch.Tensor]:
        """(images, labels, members, iteration, originals or None), on the device -> the scalar loss at this step."""
        objective = self.objective.at(iteration)
        if id(objective) not in self._functions:

            def function(images: torch.Tensor, labels: torch.Tensor, *more: torch.Tensor | None):
                return objective(Batch(images, self.geometry, labels, *more))

            self._functions[id(objective)] = self.runtime.compiled(function, self.steps)
        return self._functions[id(objective)]


class Recovery:
    """The state of one unit: pixels, their optimiser, the views to come."""

    def __init__(self, engine: Engine, start: Start, *stream: object):
        """`stream` names the unit's random stream; its last word names the unit."""
        self.engine, self.schedule, self.runtime = engine, engine.schedule, engine.runtime
        engine.reset(*stream)
        device, settings = self.runtime.device, engine.settings
        self.name = stream[-1]
        self.bounds = engine.geometry.bounds(device) if settings.clamp else None
        joined = torch.tensor(start.joins)
        # Images that start together are one parameter, so that the optimiser keeps a state of its own for each
        # group, made when the group first has a gradient, and never touches the groups that have none.
        self.joins = sorted(set(start.joins))
        self.groups = [torch.nonzero(joined == first)[:, 0] for first in self.joins]
        self.initial = [start.images[group].to(device) for group in self.groups]
        self.members = torch.cat(self.groups).to(device)
        self.labels = start.labels.to(device)[self.members]
        self.real = None if start.originals is None else start.originals.to(device)[self.members]
        self.scaler = self.runtime.grad_scaler()
        self.iteration = self.joins[0]
        self.stages = Stages.of(settings, start.images.shape[-1])
        iterations = range(self.schedule.iterations)
        sizes = [self.stages.size(self.stages.stage_of(i)) for i in iterations]
        self.views: list[View] = draw_views(sizes, [self.schedule.min_scale(i) for i in iterations], settings, *stream)
        self._begin(self.stages.stage_of(self.iteration), self.initial)

    def _begin(self, stage: int, images: Iterable[torch.Tensor]) -> None:
        """Begin a stage with the images of each group: resized, and with an optimiser that has seen nothing."""
        self.stage, self.size = stage, self.stages.size(stage)
        images = [resized(group, self.size) for group in images]
        # What is learnt is the image, or what is added to `base`.
        self.base = images if self.engine.settings.learn == "difference" else None
        self.pixels = [(torch.zeros_like(group) if self.base else group.clone()).requires_grad_() for group in images]
        self.optimizer = self.engine.optimizer(self.pixels)

    @torch.no_grad()
    def _next_stage(self) -> None:
        """Begin the stage of this iteration: images that were moved blend with their start, others are their start."""
        stage = self.stages.stage_of(self.iteration)
        size, blend = self.stages.size(stage), self.stages.blend
        images = []
        for first, now, initial in zip(self.joins, self._images(len(self.groups)), self.initial):
            if first < self.iteration:
                initial = torch.lerp(resized(now, size), resized(initial, size), blend)
            images.append(initial)
        self._begin(stage, images)

    def _images(self, groups: int) -> list[torch.Tensor]:
        """The images of the first groups, as functions of what is learnt."""
        if self.base is None:
            return self.pixels[:groups]
        return [base + pixels for base, pixels in zip(self.base[:groups], self.pixels)]

    def active_groups(self, iteration: int) -> int:
        """How many groups take part in `iteration`."""
        return sum(first <= iteration for first in self.joins)

    def active_images(self, iteration: int) -> int:
        return sum(len(group) for group in self.groups[: self.active_groups(iteration)])

    def step(self) -> torch.Tensor:
        """One update of the active images; returns the loss, without waiting for the device."""
        if self.stages.stage_of(self.iteration) != self.stage:
            self._next_stage()
        groups, images = self.active_groups(self.iteration), self.active_images(self.iteration)
        rows, columns = self.views[self.iteration].matrices(self.size, self.runtime.device)
        batch = rows @ torch.cat(self._images(groups)) @ columns
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.schedule.learning_rate(self.iteration)
        # Filled on the device, which a copy from the host would make wait.
        now = torch.full((), self.iteration, device=self.runtime.device)
        with self.runtime.autocast():
            loss = self.engine.loss(self.iteration)(
                batch.contiguous(memory_format=torch.channels_last),
                self.labels[:images],
                self.members[:images],
                now,
                None if self.real is None else self.real[:images],
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.bounds:
            self._clamp(groups)
        self.iteration += 1
        return loss.detach()

    @torch.no_grad()
    def _clamp(self, groups: int) -> None:
        for index, pixels in enumerate(self.pixels[:groups]):
            if self.base is None:
                pixels.clamp_(*self.bounds)
            else:
                pixels.copy_((self.base[index] + pixels).clamp_(*self.bounds) - self.base[index])

    def run(self, report: Callable[[int, int, float], None], state: State | None = None) -> torch.Tensor:
        """Every step that `state` does not hold yet; returns the images (N, 3, S, S), normalised fp32, in their order.

        `report` gets (image updates since the last report, iteration, loss) now and then. Raises UserError if the
        loss, or a pixel at the end, is not finite.
        """
        state = state or NoState()
        if saved := state.load():
            self._restore(saved)
        updates = sum(map(self.active_images, range(self.joins[0], self.iteration)))
        while self.iteration < self.schedule.iterations:
            loss = self.step()
            updates += self.active_images(self.iteration - 1)
            if self.iteration % 20 == 0 or self.iteration == self.schedule.iterations:
                report(updates, self.iteration, self._finite(loss))
                updates = 0
            state.save_if_due(lambda: self._saved(loss))
        self._require_finite_pixels()
        return self.images()

    def _finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise self._not_finite(f"loss is {value}")
        return value

    def _require_finite_pixels(self) -> None:
        """After an update: the loss is that before it."""
        if not all(pixels.isfinite().all() for pixels in self.pixels):
            raise self._not_finite("a pixel is NaN or infinite")

    def _not_finite(self, what: str) -> UserError:
        return UserError(
            f"{what} at iteration {self.iteration} of unit {self.name}; nothing of it was saved; "
            f"try a smaller --lr than {self.schedule.lr} or --precision fp32"
        )

    def _saved(self, loss: torch.Tensor) -> dict[str, Any]:
        self._finite(loss)
        self._require_finite_pixels()
        return {
            "iteration": self.iteration,
            "stage": self.stage,
            "base": self.base,
            "pixels": [pixels.detach() for pixels in self.pixels],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "objective": self.engine.objective.state(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        device = self.runtime.device
        self._begin(saved["stage"], [group.to(device) for group in saved["base"] or saved["pixels"]])
        with torch.no_grad():
            for pixels, kept in zip(self.pixels, saved["pixels"]):
                pixels.copy_(kept)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        self.engine.load_state(saved["objective"])

    @torch.no_grad()
    def images(self) -> torch.Tensor:
        """The images as they are now, (N, 3, S, S) normalised fp32 on the CPU, in the order they came."""
        order = torch.cat(self.groups).argsort()
        return torch.cat([pixels.detach().cpu() for pixels in self._images(len(self.groups))])[order]
