"""Views: the crop, flip and roll through which a step looks at its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torchvision.transforms import RandomResizedCrop

from recover.settings import Settings
from utils.nets.resampling import bilinear
from utils.run.seeds import seeded

RATIO = (3 / 4, 4 / 3)  # aspect ratios of the crop, as torchvision's default
PADDING = 4  # pixels, of padded crops
CROPS = ("resized", "padded", "none")


@dataclass(frozen=True)
class View:
    """A crop (top, left, height, width in pixels), a flip, a roll (rows, columns).

    A crop that reaches beyond the image has its size, and shows zeros there: of normalised images their mean.
    """

    crop: tuple[int, int, int, int]
    flip: bool
    roll: tuple[int, int]

    def matrices(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns), each (size, size) fp32, such that the view of x (N, 3, size, size) is rows @ x @ columns.

        Bilinear resizing, flipping and rolling are linear and separable: as two small products they keep one shape,
        whatever the crop is.
        """
        top, left, height, width = self.crop
        rows = bilinear(size, size, device, start=top, span=height).roll(self.roll[0], 0)
        columns = bilinear(size, size, device, start=left, span=width)
        columns = (columns.flip(0) if self.flip else columns).roll(self.roll[1], 0)
        return rows, columns.T


def draw_views(sizes: Sequence[int], scales: Sequence[float], settings: Settings, *stream: object) -> list[View]:
    """One random view for each step: of images of `sizes` pixels, by the settings' crop, flip and roll.

    `scales` bound the share of the image that a resized crop takes from below; `stream` names the random stream.
    """
    views = []
    high = settings.jitter
    low = -high if settings.jitter_low is None else settings.jitter_low
    with seeded(*stream):
        for size, scale in zip(sizes, scales, strict=True):
            crop = _draw_crop(settings.crop, size, scale)
            flip = settings.flip and bool(torch.rand(()) < 0.5)
            roll = tuple(torch.randint(low, high + 1, (2,)).tolist()) if low < high else (high, high)
            views.append(View(crop, flip, roll))
    return views


def _draw_crop(kind: str, size: int, scale: float) -> tuple[int, int, int, int]:
    """Draws from torch's global generator."""
    if kind == "resized":
        shape = torch.empty(3, size, size, device="meta")
        return tuple(RandomResizedCrop.get_params(shape, scale=[scale, 1.0], ratio=list(RATIO)))
    if kind == "padded":
        top, left = torch.randint(-PADDING, PADDING + 1, (2,)).tolist()
        return top, left, size, size
    return 0, 0, size, size
