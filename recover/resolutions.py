"""Stages of resolutions: between them images are resized and blended with their start (FADRM, arXiv 2506.24125)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recover.settings import Settings
from utils.nets.models import takes_size
from utils.nets.teacher import Teacher
from utils.run.errors import UserError


@dataclass(frozen=True)
class Stages:
    """Which part of the iterations has images of which size.

    Each stage but the first begins with the images of the one before it and the starting images, both resized
    (bilinear) and blended: `blend` is the starting images' share.
    """

    iterations: int
    count: int
    sizes: tuple[int, ...]  # pixels, of the stages in turn
    blend: float

    @classmethod
    def of(cls, settings: Settings, size: int) -> Stages:
        """The stages of images that end with `size` pixels.

        Raises UserError where they do not divide the iterations, or the last one's size is another.
        """
        sizes = tuple(round(share * size) for share in settings.stage_sizes)
        stages = cls(settings.iterations, settings.stages, sizes, settings.blend)
        if settings.iterations % settings.stages:
            below = settings.iterations - settings.iterations % settings.stages
            near = " or ".join(str(n) for n in (below, below + settings.stages) if n)
            raise UserError(
                f"--iterations {settings.iterations} is not a multiple of --stages {settings.stages}; {near} "
                "iterations would be"
            )
        if (last := stages.size(settings.stages - 1)) != size:
            raise UserError(
                f"--stage-sizes: the last of {settings.stages} stages has {last} pixels, and the images {size}; its "
                f"share has to be 1"
            )
        return stages

    def stage_of(self, iteration: int) -> int:
        """Counted from 0."""
        return iteration * self.count // self.iterations

    def size(self, stage: int) -> int:
        """Pixels."""
        return self.sizes[stage % len(self.sizes)]

    def check(self, teachers: list[Teacher]) -> None:
        """Raises UserError for a teacher that cannot take images of all sizes."""
        for size in sorted({self.size(stage) for stage in range(self.count)}):
            for teacher in teachers:
                own = teacher.geometry.input_size
                if size != own and not takes_size(teacher.network, size):
                    raise UserError(
                        f"--stage-sizes: {teacher.arch} was made for {own} pixels and cannot take {size}; give "
                        "--stage-sizes 1, or a teacher whose last pool is adaptive, such as resnet18"
                    )


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 3, S, S) -> (N, 3, size, size), bilinear; they themselves where they have that size."""
    if images.shape[-1] == size:
        return images
    return torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
