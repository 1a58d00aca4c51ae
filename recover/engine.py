"""The recovery of one work unit: a batch of images, each optimised from the round in which it joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable

import torch

from recover.objective import Objective
from recover.schedule import View, crop_scale, draw_views, learning_rate
from utils.files import UserError
from utils.runtime import Runtime
from utils.state import NoState, State


@dataclass(frozen=True)
class Settings:
    """The arguments that decide what an image becomes."""

    iterations: int
    round_iterations: int
    lr: float
    r_bn: float
    first_bn_multiplier: float
    jitter: int
    curriculum: str
    milestone: float
    min_crop: float


class Recovery:
    """The state of one unit: pixels, their optimiser, the views to come.

    `images` (N, 3, S, S) are normalised fp32, `labels` (N,), `starts` gives each image's first iteration.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, starts: list[int], settings: Settings,
                 objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], bounds: tuple[torch.Tensor, torch.Tensor],
                 runtime: Runtime, *stream: object):
        self.settings, self.objective, self.runtime = settings, objective, runtime
        self.name = stream[-1]  # of the unit
        self.size = images.shape[-1]
        self.bounds = tuple(bound.to(runtime.device).view(3, 1, 1) for bound in bounds)
        start_of = torch.tensor(starts)
        # Images that start together are one parameter, so that the optimiser keeps a state of its own for each
        # group, made when the group first has a gradient, and never touches the groups that have none.
        self.starts = sorted(set(starts))
        self.members = [torch.nonzero(start_of == start)[:, 0] for start in self.starts]
        self.pixels = [images[member].to(runtime.device).requires_grad_() for member in self.members]
        self.labels = [labels[member].to(runtime.device) for member in self.members]
        self.optimizer = torch.optim.Adam(self.pixels, settings.lr, betas=(0.5, 0.9), eps=1e-8, fused=True)
        self.scaler = runtime.grad_scaler()
        self.iteration = self.starts[0]
        scales = [crop_scale(i, settings.iterations, settings.curriculum, settings.milestone, settings.min_crop)
                  for i in range(settings.iterations)]
        self.views: list[View] = draw_views(self.size, scales, settings.jitter, *stream)

    def active(self, iteration: int) -> int:
        """How many groups take part in `iteration`."""
        return sum(start <= iteration for start in self.starts)

    def step(self) -> torch.Tensor:
        """One update of the active images; returns the loss, without waiting for the device."""
        groups = self.active(self.iteration)
        rows, columns = self.views[self.iteration].matrices(self.size, self.runtime.device)
        batch = rows @ torch.cat(self.pixels[:groups]) @ columns
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.iteration, self.settings.iterations, self.settings.lr)
        with self.runtime.autocast():
            loss = self.objective(batch.contiguous(memory_format=torch.channels_last), torch.cat(self.labels[:groups]))
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
        """Every step that `state` does not hold yet; returns the images (N, 3, S, S), normalised fp32, in the order they came.

        `report` gets (image updates since the last report, iteration, loss) now and then. Raises UserError if the
        loss is not finite.
        """
        state = state or NoState()
        if saved := state.load():
            self._restore(saved)
        updates = sum(self._updates(iteration) for iteration in range(self.starts[0], self.iteration))
        while self.iteration < self.settings.iterations:
            loss = self.step()
            updates += self._updates(self.iteration - 1)
            if self.iteration % 20 == 0 or self.iteration == self.settings.iterations:
                report(updates, self.iteration, self._finite(loss))
                updates = 0
            state.keep(lambda: self._saved(loss))
        return self.images()

    def _updates(self, iteration: int) -> int:
        return sum(len(member) for member in self.members[:self.active(iteration)])

    def _finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(f"loss is {value} at iteration {self.iteration} of unit {self.name}; nothing of it was saved; "
                            f"try a smaller --lr than {self.settings.lr} or --precision fp32")
        return value

    def _saved(self, loss: torch.Tensor) -> dict[str, Any]:
        self._finite(loss)
        return {"iteration": self.iteration, "pixels": [pixels.detach() for pixels in self.pixels],
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def _restore(self, saved: dict[str, Any]) -> None:
        self.iteration = saved["iteration"]
        with torch.no_grad():
            for pixels, kept in zip(self.pixels, saved["pixels"]):
                pixels.copy_(kept)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])

    def images(self) -> torch.Tensor:
        """The images as they are now, (N, 3, S, S) normalised fp32 on the CPU, in the order they came."""
        order = torch.cat(self.members).argsort()
        return torch.cat([pixels.detach().cpu() for pixels in self.pixels])[order]


def make_objective(model: torch.nn.Module, settings: Settings, runtime: Runtime, steps: int) -> Callable:
    """The objective on the device; compiled if `steps` repay it."""
    objective = runtime.frozen(Objective(model, settings.r_bn, settings.first_bn_multiplier))
    return runtime.compiled(objective, steps)
