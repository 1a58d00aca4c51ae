"""Geometry: what the images and the networks of a run have to agree on."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from typing import Any, Sequence

import torch

from utils.run.device import transfer
from utils.run.errors import UserError

# Pixels from 0 to 1 deviate by 0.5 at most, and 1 leaves them as they are; but a network may want them smaller still.
# From here on it is a deviation of pixels from 0 to 255: of a hundredth of these, or more.
LARGE_STD = 2.55
ROUNDING = 1e-3  # of a mean that was computed


@dataclass(frozen=True)
class Geometry:
    """`input_size` is in pixels, `mean` and `std` are per channel, of pixels from 0 to 1."""

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    classes: tuple[str, ...] | None  # names in label order; None where a checkpoint does not name them
    stem: str

    def normalise(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        """uint8 images (N, 3, H, W), 0 to 255 -> normalised fp32 on the device, channels_last."""
        pixels = transfer(images, device) / 255
        return self.normalise_pixels(pixels).contiguous(memory_format=torch.channels_last)

    def normalise_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels from 0 to 1 (..., 3, H, W) -> normalised; `denormalise` is the inverse."""
        mean, std = _per_channel(pixels.device, self.mean, self.std)
        return (pixels - mean) / std

    def denormalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised (N, 3, H, W) -> pixels from 0 to 1."""
        mean, std = _per_channel(images.device, self.mean, self.std)
        return images * std + mean

    def bounds(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Black and white, normalised, each (3, 1, 1)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return tuple(bound.view(3, 1, 1).to(device) for bound in (-mean / std, (1 - mean) / std))

    def renormalise(self, images: torch.Tensor, source: "Geometry") -> torch.Tensor:
        """Images normalised as `source` says -> as this geometry says; they themselves where both say the same."""
        if (self.mean, self.std) == (source.mean, source.std):
            return images
        scale = tuple(theirs / own for theirs, own in zip(source.std, self.std))
        shift = tuple((theirs - own) / std for theirs, own, std in zip(source.mean, self.mean, self.std))
        scale, shift = _per_channel(images.device, scale, shift)
        return images * scale + shift


@dataclass(frozen=True)
class GeometryFlags:
    """What the command line says of the geometry; None where it says nothing.

    Raises UserError where mean or std are not of pixels from 0 to 1.
    """

    dataset: str | None = None
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    stem: str | None = None

    def __post_init__(self) -> None:
        if fault := fault_of_scale(self.mean, self.std, "--"):
            raise UserError(fault)


def fault_of_scale(mean: Sequence[float] | None, std: Sequence[float] | None, prefix: str = "") -> str | None:
    """Why these are no mean and std, per channel, of pixels from 0 to 1, and what they are if divided by 255.

    None where they can be. `prefix` stands before their names.
    """
    if mean and not all(-ROUNDING <= value <= 1 + ROUNDING for value in mean):
        name, values, rule = "mean", mean, "from 0 to 1"
    elif std and max(std) >= LARGE_STD:
        name, values, rule = "std", std, f"below {LARGE_STD}"
    else:
        return None
    fault = f"{prefix}{name} {_numbers(values)}: of pixels from 0 to 1, as they are here, it is {rule}"
    if max(values) <= 1:
        return fault
    # A std below 1 is of pixels from 0 to 1 already; that of 1, of Caffe's networks, is not.
    pairs = [("mean", mean)] if mean and max(mean) > 1 else []
    pairs += [("std", std)] if std and max(std) >= 1 else []
    divided = " ".join(f"{prefix}{name} {_numbers([value / 255 for value in values])}" for name, values in pairs)
    return f"{fault}; divided by 255, if it is of pixels from 0 to 255: {divided}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def plain(values: object) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(values).items()}


@torch.compiler.assume_constant_result  # torch.compile would trace what the cache holds, and warn of it
def _per_channel(device: torch.device, *values: tuple) -> tuple[torch.Tensor, ...]:
    """Each of `values` (3,) as (3, 1, 1) on the device; kept, because every transfer would make the host wait."""
    return _kept(device, *values)


@functools.cache
def _kept(device: torch.device, *values: tuple) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode(False):  # an inference tensor would be of no use to a later training
        return tuple(torch.tensor(value, device=device).view(3, 1, 1) for value in values)
