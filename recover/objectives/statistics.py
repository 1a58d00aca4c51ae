"""Generalised statistics matching (G-VBSM, arXiv 2311.17950; EDC, arXiv 2404.13733).

What convolutions and BatchNorms get of the synthetic images is compared with what they get of the real ones: channels'
means and variances, and of convolutions those of patches too (utils/nets/moments.py). The targets come from
`python -m squeeze.statistics`; a BatchNorm's are its running ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import nn

from recover.objectives.base import Batch, Objective, combined
from recover.objectives.batchnorm import MatchedBatchNorm, matched_norm, moments_alone
from recover.objectives.densification import densification
from recover.objectives.measure import convolution_input
from recover.settings import Settings
from utils.nets import statistics
from utils.nets.layers import is_plain
from utils.nets.moments import at_least_fp32
from utils.nets.statistics import BATCHNORM, CONVOLUTION, PARTS, Statistics
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.seeds import generator

# Of a recipe, with the largest value of each.
OPTIONS = {"momentum": 1.0, "drop": 1.0, "class_share": 1.0, "densification": float("inf")}


@dataclass(frozen=True)
class Weights:
    """The settings of the terms."""

    iterations: int
    statistics: float  # of all statistics
    first: float  # more for the first layer's
    momentum: float = 0.8  # of the running averages
    drop: float = 0.0  # probability that a convolution's terms are left out at a step
    class_share: float = 0.0  # of the distances to the classes' own targets; the rest is of those to all images'
    densification: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Weights:
        """Raises UserError for an option that is out of its range."""
        own = {name: settings.options[name] for name in OPTIONS if name in settings.options}
        for name, value in own.items():
            if not 0 <= value <= OPTIONS[name]:
                raise UserError(f"--option {name}={value:g}: is not between 0 and {OPTIONS[name]:g}")
        return cls(settings.iterations, settings.r_bn, settings.first_bn_multiplier, **own)


class _Norm(MatchedBatchNorm):
    """A plain BatchNorm, frozen; `moments` are those of its input after a forward pass."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm)
        self.moments: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, *moments = matched_norm(x, self.scale, self.shift)
        self.moments = tuple(moments)
        return y


class _Convolution(nn.Module):
    """A plain convolution, which is left to be prepared for speed; `moments` are those of its input."""

    def __init__(self, layer: nn.Conv2d, patch: int):
        super().__init__()
        self.layer, self.patch = layer, patch
        self.moments: tuple[torch.Tensor, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, *moments = convolution_input(x, self.patch)
        self.moments = tuple(moments)
        return self.layer(x)


class _Hooked:
    """Any other layer, which goes on doing what it does; `moments` are those of its input."""

    def __init__(self, layer: nn.Module, patch: int | None):
        """`patch` for convolutions."""
        self.patch = patch
        self.moments: tuple[torch.Tensor, ...] | None = None
        layer.register_forward_pre_hook(self._measure)

    def _measure(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self.patch is None:
            self.moments = moments_alone(inputs[0])
            return None
        x, *moments = convolution_input(inputs[0], self.patch)
        self.moments = tuple(moments)
        return (x, *inputs[1:])


class StatisticsMatching(Objective):
    """cross-entropy + weight * sum over layers of their distances + densification; the first layer's weigh more.

    Terms stand in the order of the modules, those of convolutions and of BatchNorms. The distance of one is
    || m - target ||_2, summed over its means and variances, where m is a running average over steps, m <- momentum * m
    + (1 - momentum) * s from 0: its value is m's, its gradient that of s. Averages begin anew with each unit. With
    `drop` a convolution's terms are left out at some steps, and its averages do not move then; which, is drawn when a
    unit begins. With `class_share` a part of the distance is that to the mean over the batch's labels of the classes'
    targets.

    Takes over the teacher's network, as BatchNormMatching does.
    """

    def __init__(self, teacher: Teacher, found: Statistics, weights: Weights):
        super().__init__()
        found.require(teacher, per_class=weights.class_share > 0)
        self.geometry, self.weights = teacher.geometry, weights
        self.inputs = {"teacher": teacher.sha256, "statistics": found.sha256}
        network = teacher.network.eval().requires_grad_(False)
        dtype = at_least_fp32(next(network.parameters()))
        targets, of_classes, sizes, owners, factors = [], [], [], [], []
        for number, layer in enumerate(found.layers):
            module = network.get_submodule(layer.name)
            for part in PARTS[layer.kind]:
                if layer.kind == BATCHNORM:
                    targets.append(getattr(module, f"running_{part}").to(dtype))
                else:
                    targets.append(found.tensors[f"{layer.name}.{part}"].to(dtype))
                if weights.class_share:
                    of_classes.append(found.tensors[f"{layer.name}.class_{part}"].to(dtype))
                sizes.append(len(targets[-1]))
                owners.append(number)
                factors.append(weights.first if number == 0 else 1.0)
        self.layers = [_measured(network, layer.name, found.settings["patch"]) for layer in found.layers]
        self.network, self.sizes = network, sizes
        owner = torch.tensor(owners)
        average = torch.zeros(sum(sizes), dtype=dtype)
        kept = torch.ones(weights.iterations, len(found.layers), dtype=torch.bool)
        self.droppable = torch.tensor([layer.kind == CONVOLUTION for layer in found.layers])
        for name, tensor in {
            "target": torch.cat(targets),
            "class_targets": torch.cat(of_classes, 1) if of_classes else None,  # (K, F)
            "average": average,  # (F,), of all layers' numbers in a row
            "owner": owner,  # (T,), the layer of each term
            "owner_of": owner.repeat_interleave(torch.tensor(sizes)),  # (F,)
            "factors": torch.tensor(factors, dtype=dtype),  # (T,)
            "kept": kept,  # (iterations, layers)
        }.items():
            self.register_buffer(name, tensor)

    def begin(self, *stream: object) -> None:
        if self.weights.drop:
            draws = torch.rand(self.kept.shape, generator=generator(*stream, "dropped"))
            self.kept.copy_((draws >= self.weights.drop) | ~self.droppable)

    def forward(self, batch: Batch) -> torch.Tensor:
        images = batch.normalised(self.geometry)
        logits = self.network(images)
        loss = nn.functional.cross_entropy(logits.to(at_least_fp32(logits)), batch.labels)
        if self.weights.densification:
            loss = loss + self.weights.densification * densification(images, batch.labels).to(loss.dtype)
        return loss + self.weights.statistics * self._distance(batch)

    def _distance(self, batch: Batch) -> torch.Tensor:
        now = torch.cat([part.to(self.average.dtype) for layer in self.layers for part in layer.moments])
        for layer in self.layers:
            layer.moments = None
        kept = self.kept.index_select(0, batch.iteration.view(1))[0]
        momentum = self.weights.momentum
        with torch.no_grad():
            moved = momentum * self.average + (1 - momentum) * now
            average = torch.where(kept[self.owner_of], moved, self.average)
            self.average.copy_(average)
        value = average + (now - now.detach())
        share = self.weights.class_share
        terms = (1 - share) * self._norms(value - self.target)
        if share:
            own = self.class_targets.index_select(0, batch.labels).mean(0)
            terms = terms + share * self._norms(value - own)
        return (self.factors * kept[self.owner] * terms).sum()

    def _norms(self, difference: torch.Tensor) -> torch.Tensor:
        """(F,) -> (T,)."""
        return torch.stack([torch.linalg.vector_norm(part) for part in difference.split(self.sizes)])

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def state(self) -> dict[str, torch.Tensor]:
        return {"average": self.average}

    def identity(self) -> dict[str, Any]:
        return self.inputs


def _measured(network: nn.Module, name: str, patch: int) -> _Norm | _Convolution | _Hooked:
    """Let the layer `name` measure what it gets. Torch's own are replaced in the network."""
    layer = network.get_submodule(name)
    if is_plain(layer, nn.Conv2d):
        measured = _Convolution(layer, patch)
    elif is_plain(layer, nn.BatchNorm2d):
        measured = _Norm(layer)
    else:
        return _Hooked(layer, patch if isinstance(layer, nn.Conv2d) else None)
    network.set_submodule(name, measured)
    return measured


def build(teachers: Sequence[Teacher], settings: Settings) -> Objective:
    """The entry of the registry. Raises UserError where `--statistics` does not give each teacher's file, and for
    stages of other sizes."""
    paths = settings.statistics
    if len(paths) != len(teachers):
        raise UserError(
            f"--statistics names {len(paths)} files for {len(teachers)} teachers: this objective matches what "
            f"`{statistics.COMMAND}` collects of each; give one file for each teacher, in their order"
        )
    if any(size != 1 for size in settings.stage_sizes):
        raise UserError(
            "--stage-sizes: a file of statistics is of maps of one size, the teacher's; give --stage-sizes 1"
        )
    weights = Weights.of(settings)
    terms = [StatisticsMatching(teacher, statistics.read(path), weights) for teacher, path in zip(teachers, paths)]
    return combined(terms, settings.combine)
