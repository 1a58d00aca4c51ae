"""Views: the crop, flip and roll through which a step looks at its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchvision.transforms import RandomResizedCrop

from utils.run.seeds import seeded

RATIO = (3 / 4, 4 / 3)  # aspect ratios of the crop, as torchvision's default


@dataclass(frozen=True)
class View:
    """A crop (top, left, height, width in pixels), a flip, a roll (rows, columns)."""

    crop: tuple[int, int, int, int]
    flip: bool
    roll: tuple[int, int]

    def matrices(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, columns), each (size, size) fp32, such that the view of x (N, 3, size, size) is rows @ x @ columns.

        Bilinear resizing, flipping and rolling are linear and separable. As two small products they keep one
        shape whatever the crop is, and their gradient sums in a fixed order.
        """
        top, left, height, width = self.crop
        rows = _resample(top, height, size, device).roll(self.roll[0], 0)
        columns = _resample(left, width, size, device)
        columns = (columns.flip(0) if self.flip else columns).roll(self.roll[1], 0)
        return rows, columns.T


def _resample(start: int, length: int, size: int, device: torch.device) -> torch.Tensor:
    """The (size, size) matrix that resizes pixels start .. start + length of a line of `size` back to `size`."""
    identity = torch.eye(size, device=device)[None, :, start : start + length]
    return torch.nn.functional.interpolate(identity, size=size, mode="linear")[0].T


def draw_views(size: int, scales: list[float], jitter: int, *stream: object) -> list[View]:
    """One random view for each of `scales`, the smallest share of the image that the step's crop may take.

    `jitter` bounds the roll, in pixels; `stream` names the random stream.
    """
    views = []
    shape = torch.empty(3, size, size, device="meta")
    with seeded(*stream):
        for scale in scales:
            crop = RandomResizedCrop.get_params(shape, scale=[scale, 1.0], ratio=list(RATIO))
            flip = bool(torch.rand(()) < 0.5)
            roll = tuple(torch.randint(-jitter, jitter + 1, (2,)).tolist()) if jitter else (0, 0)
            views.append(View(tuple(crop), flip, roll))
    return views
