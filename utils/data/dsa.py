"""Differentiable siamese augmentation of normalised images on the device (DSA, Zhao and Bilen, 2021, section 3.3).

Parameters, and the order of what is drawn, are those of its code, which the field copies. Every kind takes images
(N, 3, S, S) and uniform numbers (N, DRAWS) from 0 to 1, or (1, DRAWS) for images that share one draw. The host never
waits for the device. kornia's colours cut pixels to [0, 1], and its boxes never reach beyond the image; the gradient of
PyTorch's grid_sample sums on a GPU in an order of its own, so that the same command would not give the same bytes.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Callable

import torch
from torch.nn.functional import affine_grid

from utils.run.seeds import generator

DRAWS = 3  # uniform numbers that a kind takes at most
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
PADDING = 0.125  # of a crop, as a share of the side
CUTOUT = 0.5  # the box's side
FLIP = 0.5  # probability
SCALE = 1.2  # and its inverse bound the zoom along each side
ROTATE = 15.0  # degrees


def color(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Brightness, then saturation, then contrast."""
    brightness, saturation, contrast = (draws[:, k].view(-1, 1, 1, 1) for k in range(3))
    images = images + (brightness - 0.5) * BRIGHTNESS
    gray = images.mean(1, keepdim=True)
    images = (images - gray) * (saturation * SATURATION) + gray
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + CONTRAST) + mean


def crop(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Shifted by whole pixels; zeros come in."""
    size = images.shape[-1]
    room = int(size * PADDING + 0.5)
    for axis in (2, 3):
        shift = (draws[:, axis - 2] * (2 * room + 1)).floor().long() - room
        images = _Shifted.apply(images, shift, axis)
    return images


class _Shifted(torch.autograd.Function):
    """Images along an axis by `shift` (N,) or (1,) pixels. The gradient is shifted back: that of gather is a scatter,
    which is slow where it is to sum in a fixed order."""

    @staticmethod
    def forward(ctx, images: torch.Tensor, shift: torch.Tensor, axis: int) -> torch.Tensor:
        ctx.save_for_backward(shift)
        ctx.axis = axis
        return _shifted(images, shift, axis)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _shifted(grad, -ctx.saved_tensors[0], ctx.axis), None, None


def _shifted(images: torch.Tensor, shift: torch.Tensor, axis: int) -> torch.Tensor:
    size = images.shape[axis]
    source = torch.arange(size, device=images.device) + shift[:, None]  # (N, S)
    shape = [-1, 1, 1, 1]
    shape[axis] = size
    index = source.clamp(0, size - 1).view(shape).expand_as(images)
    inside = ((source >= 0) & (source < size)).view(shape)
    return images.gather(axis, index) * inside


def cutout(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Zeros in a square whose centre lies anywhere in the image."""
    size = images.shape[-1]
    side = int(size * CUTOUT + 0.5)
    places = torch.arange(size, device=images.device)
    centres = (draws[:, :2] * (size + 1 - side % 2)).floor().long()
    first = centres[:, :, None] - side // 2  # (N, 2, 1)
    inside = (places >= first) & (places < first + side)  # (N, 2, S)
    return images * ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def flip(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    return torch.where((draws[:, 0] < FLIP).view(-1, 1, 1, 1), images.flip(3), images)


def scale(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    across, down = (draws[:, k] * (SCALE - 1 / SCALE) + 1 / SCALE for k in range(2))
    return _warped(images, across, torch.zeros_like(across), torch.zeros_like(across), down)


def rotate(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    angle = (draws[:, 0] - 0.5) * (2 * math.radians(ROTATE))
    return _warped(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _warped(images: torch.Tensor, *matrix: torch.Tensor) -> torch.Tensor:
    """Bilinear, around the centre; zeros come in. `matrix`: its four entries, row by row, (N,) or (1,) each."""
    entries = [entry.expand(len(images)) for entry in matrix]
    theta = torch.stack([*entries[:2], torch.zeros_like(entries[0]), *entries[2:], torch.zeros_like(entries[0])], 1)
    with torch.autocast(images.device.type, enabled=False):  # a place in bf16 is off by half a pixel at 224
        grid = affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    return _sampled(images, (grid + 1) * (images.shape[-1] / 2) - 0.5)


def _sampled(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Bilinear between the four pixels around each of `places` (N, S, S, 2), columns before rows; zeros beyond."""
    size, found = images.shape[-1], 0
    for down, right in product(range(2), repeat=2):
        near = [(axis.floor() + further, axis) for axis, further in zip(places.unbind(3), (right, down))]
        weight = math.prod((1 - (axis - pixel).abs()) * ((pixel >= 0) & (pixel < size)) for pixel, axis in near)
        column, row = (pixel.long().clamp(0, size - 1) for pixel, _ in near)
        index = (row * size + column).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        found = found + images.flatten(2).gather(2, index).view_as(images) * weight[:, None]
    return found


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def draw(count: int, *stream: object) -> tuple[str, torch.Tensor]:
    """One kind for a batch of `count` images, as the field's code has it, and numbers for each (count, DRAWS)."""
    source = generator(*stream)
    kind = list(KINDS)[int(torch.randint(len(KINDS), (), generator=source))]
    return kind, torch.rand(count, DRAWS, generator=source)


def one_of(kinds: tuple[str, ...], images: torch.Tensor, which: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Images augmented by kind number `which`, a scalar tensor on the device: as one graph for all of the `kinds`."""
    found = images
    for number, name in enumerate(kinds):
        found = torch.where(which == number, KINDS[name](images, draws), found)
    return found
