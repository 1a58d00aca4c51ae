"""What every objective is: a loss of a step's images, that may hold state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import nn

from utils.data.geometry import Geometry


@dataclass
class Batch:
    """The images of a step and what belongs to them, on the device.

    `images` (N, 3, S, S), fp32, are the views of this step. The optimiser works on normalised images, and `geometry`
    says how they are normalised; an objective takes `pixels`, or `normalised` for each of its teachers.
    """

    images: torch.Tensor
    geometry: Geometry
    labels: torch.Tensor  # (N,)
    members: torch.Tensor  # (N,), which images of the unit they are
    iteration: torch.Tensor  # (), a tensor so that one compilation serves all
    originals: torch.Tensor | None = None  # (N, tiles, 3, S, S) as `images` are, of collages; see needs_originals

    @property
    def pixels(self) -> torch.Tensor:
        """The images from 0 to 1."""
        return self.geometry.denormalise(self.images)

    def normalised(self, geometry: Geometry) -> torch.Tensor:
        """The images as `geometry` normalises them."""
        return geometry.renormalise(self.images, self.geometry)


class Objective(nn.Module):
    """What the images of a unit minimise.

    Called with a Batch, it returns the scalar loss, in fp32 or above. It is put on the device, frozen and compiled by
    the engine.
    """

    needs_originals = False  # the real images behind the tiles of collages

    def forward(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def at(self, iteration: int) -> Objective:
        """The objective of this iteration: another one for each teacher where they take turns.

        One and the same object for all iterations that have the same loss, as each object is compiled once.
        """
        return self

    def begin(self, *stream: object) -> None:
        """Called when a unit begins, with the name of its random stream: for what is drawn for all of its steps.

        When a unit is resumed too, so that nothing of it need be saved.
        """

    def networks(self) -> list[nn.Module]:
        """The teachers' networks in their order, if it holds them as such: they must give the teachers' logits.

        They are called with images normalised for each, before the first step, and compared.
        """
        return []

    def identity(self) -> dict[str, Any]:
        """What decides its value beside the images, as JSON has it: teachers' digests, settings, statistics' files."""
        return {}

    def check(self, ipc: int, batch_by: str) -> None:
        """Raises UserError where it cannot serve a set of `ipc` images a class, or its units."""

    def facts(self, label: int, position: int) -> dict[str, Any]:
        """What the manifest says of a class's image at this position: `weight`, where the method learns one."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that steps change in place, such as running averages.

        Each unit starts with what they hold when the objective is made. They are saved and restored with the unit.
        """
        return {}


class _Several(Objective):
    """One objective for each of several teachers."""

    def __init__(self, objectives: Sequence[Objective]):
        super().__init__()
        self.objectives = nn.ModuleList(objectives)
        self.needs_originals = any(objective.needs_originals for objective in objectives)

    def begin(self, *stream: object) -> None:
        for number, objective in enumerate(self.objectives):
            objective.begin(*stream, number)

    def networks(self) -> list[nn.Module]:
        return [network for objective in self.objectives for network in objective.networks()]

    def identity(self) -> dict[str, Any]:
        return {type(self).__name__: [objective.identity() for objective in self.objectives]}

    def check(self, ipc: int, batch_by: str) -> None:
        for objective in self.objectives:
            objective.check(ipc, batch_by)

    def facts(self, label: int, position: int) -> dict[str, Any]:
        """The first teacher's."""
        return self.objectives[0].facts(label, position)

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f"{number}.{name}": tensor
            for number, objective in enumerate(self.objectives)
            for name, tensor in objective.state().items()
        }


class Mean(_Several):
    """The mean of several objectives in every step."""

    def __init__(self, objectives: Sequence[Objective]):
        super().__init__(objectives)
        self._means = {tuple(map(id, self.objectives)): self}  # of what the terms are in some iteration

    def at(self, iteration: int) -> Objective:
        terms = [objective.at(iteration) for objective in self.objectives]
        key = tuple(map(id, terms))
        if key not in self._means:
            self._means[key] = Mean(terms)
        return self._means[key]

    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.stack([objective(batch) for objective in self.objectives]).mean()


class InTurn(_Several):
    """One of several objectives a step, in turn by the iteration."""

    def at(self, iteration: int) -> Objective:
        return self.objectives[iteration % len(self.objectives)].at(iteration)


COMBINATIONS = {"mean": Mean, "turn": InTurn}


def combined(objectives: Sequence[Objective], how: str) -> Objective:
    """Several teachers' objectives as one."""
    return objectives[0] if len(objectives) == 1 else COMBINATIONS[how](objectives)
