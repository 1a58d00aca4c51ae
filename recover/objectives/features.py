"""Features of a collage's tiles, each at the full size, near those of the real images that they stand for (CIM)."""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch
from torch import nn

from recover.objectives.base import Batch, Objective, combined
from recover.settings import Settings
from utils.data import dsa
from utils.data.tiles import edges
from utils.nets.features import Tap
from utils.nets.moments import at_least_fp32
from utils.nets.resampling import bilinear, resampled
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.seeds import generator


class FeatureMatching(Objective):
    """sum over tiles of the mean absolute difference of penultimate features, tile to original.

    CIM (arXiv 2607.00916): each step all tiles, enlarged, and all originals are augmented in one and the same way, by
    one of `kinds` (utils/data/dsa.py). The teacher stays whole; its logits are not looked at. Raises UserError for a
    network without a linear layer.
    """

    needs_originals = True

    def __init__(self, teacher: Teacher, kinds: Sequence[str], iterations: int):
        super().__init__()
        self.network = teacher.network.eval().requires_grad_(False)
        self.tap = Tap.of(self.network)
        self.geometry, self.sha256, self.kinds = teacher.geometry, teacher.sha256, tuple(kinds)
        # Of all steps, so that a step draws nothing.
        self.register_buffer("which", torch.zeros(iterations, dtype=torch.long))
        self.register_buffer("draws", torch.zeros(iterations, 1, dsa.DRAWS))

    def begin(self, *stream: object) -> None:
        source = generator(*stream, "augmentation")
        if self.kinds:
            self.which.copy_(torch.randint(len(self.kinds), self.which.shape, generator=source))
        self.draws.copy_(torch.rand(self.draws.shape, generator=source))

    def forward(self, batch: Batch) -> torch.Tensor:
        originals = self.geometry.renormalise(batch.originals, batch.geometry)
        tiles = enlarged_tiles(batch.normalised(self.geometry), math.isqrt(originals.shape[1]))
        with torch.no_grad():
            goals = self._features(originals.flatten(0, 1), batch.iteration)
        return (self._features(tiles.flatten(0, 1), batch.iteration) - goals).abs().mean(1).sum()

    def _features(self, images: torch.Tensor, iteration: torch.Tensor) -> torch.Tensor:
        # Indexed by a scalar, a tensor asks the device for it, and the host waits.
        which, draws = (tensor.index_select(0, iteration.view(1))[0] for tensor in (self.which, self.draws))
        draws = draws.to(images.dtype)
        images = dsa.one_of(self.kinds, images, which, draws)
        self.network(images.contiguous(memory_format=torch.channels_last))
        features = self.tap.take()
        return features.to(at_least_fp32(features))

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def identity(self) -> dict[str, Any]:
        return {"teacher": self.sha256}


def enlarged_tiles(images: torch.Tensor, side: int) -> torch.Tensor:
    """Collages (N, 3, S, S) of side x side tiles -> (N, side * side, 3, S, S), each tile bilinear at the full size."""
    size = images.shape[-1]
    lengths = edges(size, side)
    parts = [part for row in images.split(lengths, 2) for part in row.split(lengths, 3)]
    by_length = {k: bilinear(k, size, images.device, at_least_fp32(images)) for k in set(lengths)}
    return torch.stack([resampled(part, *(by_length[k] for k in part.shape[2:])) for part in parts], 1)


def build(teachers: Sequence[Teacher], settings: Settings) -> Objective:
    """The entry of the registry.

    Raises UserError for an augmentation that there is not, and for a view or stages of other sizes: a tile that is
    moved within its collage would be compared with the original of another one.
    """
    views = {
        f"--crop {settings.crop}": settings.crop != "none",
        "--flip on": settings.flip,
        f"--jitter {settings.jitter}": settings.jitter != 0,
        f"--stage-sizes {' '.join(f'{size:g}' for size in settings.stage_sizes)}": set(settings.stage_sizes) != {1},
    }
    if moved := [said for said, is_on in views.items() if is_on]:
        raise UserError(
            f"{' '.join(moved)}: the objective features compares each tile with its original, where it lies in the "
            "collage; give --crop none --flip off --jitter 0 --stage-sizes 1, as cim has them"
        )
    text = settings.options.get("augment", "none")
    kinds = [] if text == "none" else text.split("_")
    if unknown := [kind for kind in kinds if kind not in dsa.KINDS]:
        raise UserError(
            f"--option augment={text}: '{unknown[0]}' is no augmentation; known, joined by _: {', '.join(dsa.KINDS)}; "
            "or none"
        )
    return combined([FeatureMatching(teacher, kinds, settings.iterations) for teacher in teachers], settings.combine)
