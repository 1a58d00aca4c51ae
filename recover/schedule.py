"""EarlyLate's schedule: who is optimised when, how fast, and on which crop (DELT, section 3.3; CDA for the crop)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torchvision.transforms import RandomResizedCrop

from utils.files import UserError
from utils.runtime import seeded

CURRICULA = ("cosine", "linear", "step")
RATIO = (3 / 4, 4 / 3)  # aspect ratios of the crop, as torchvision's default


def count_rounds(iterations: int, round_iterations: int) -> int:
    """ITR / ROUND_ITR; one round for ROUND_ITR 0. Raises UserError if it is not a whole number."""
    if round_iterations == 0:
        return 1
    if iterations % round_iterations:
        below = iterations - iterations % round_iterations
        near = [n for n in (below, below + round_iterations) if n]
        raise UserError(f"--iterations {iterations} is not a multiple of --round-iterations {round_iterations}; "
                        f"{' or '.join(map(str, near))} iterations would be")
    return iterations // round_iterations


def round_of_ranks(ipc: int, rounds: int) -> list[int]:
    """For each rank the round in which it starts: `rounds` groups as even as can be, the first ones taking the rest."""
    size, rest = divmod(ipc, rounds)
    return [group for group in range(rounds) for _ in range(size + (group < rest))]


def learning_rate(iteration: int, iterations: int, lr: float) -> float:
    """One cosine from `lr` to 0 over the whole run, whenever an image joined it."""
    return lr * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


def crop_scale(iteration: int, iterations: int, curriculum: str, milestone: float, min_crop: float) -> float:
    """The crop's smallest share of the image: from 1 to `min_crop` within milestone * iterations, then constant."""
    length = milestone * iterations
    done = 1.0 if iteration >= length else iteration / length
    if curriculum == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * done))
    elif curriculum == "linear":
        left = 1 - done
    else:
        left = float(done < 1)
    return min_crop + (1 - min_crop) * left


@dataclass(frozen=True)
class View:
    """What one step looks at: a crop (top, left, height, width in pixels), a flip, a roll (rows, columns)."""

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
    identity = torch.eye(size, device=device)[None, :, start:start + length]
    return torch.nn.functional.interpolate(identity, size=size, mode="linear")[0].T


def draw_views(size: int, scales: list[float], jitter: int, *stream: object) -> list[View]:
    """One random view for each of `scales`, the smallest share of the image that the step's crop may take."""
    views = []
    shape = torch.empty(3, size, size, device="meta")
    with seeded(*stream):
        for scale in scales:
            crop = RandomResizedCrop.get_params(shape, scale=[scale, 1.0], ratio=list(RATIO))
            flip = bool(torch.rand(()) < 0.5)
            roll = tuple(torch.randint(-jitter, jitter + 1, (2,)).tolist()) if jitter else (0, 0)
            views.append(View(tuple(crop), flip, roll))
    return views
