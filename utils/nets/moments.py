"""Means and variances of what a layer gets: of its channels, and of patches of its map. In fp32 or above.

Whoever collects statistics and whoever matches them measure alike. A map (N, C, H, W) is cut into patches of `patch` x
`patch` pixels (G-VBSM, section 3.2): it is resized bilinearly to the largest multiple of `patch` that it holds, or to
one patch where it holds none. A patch's mean and variance go over the batch, the channels and its pixels.
"""

from __future__ import annotations

import torch

from utils.nets.resampling import bilinear, resampled

Moments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # mean, var, patch_mean, patch_var


def at_least_fp32(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.library.custom_op("delt::channel_moments", mutates_args=())
def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of x (N, C, H, W) over all but C, each (C,), in fp32 or above.

    Half of BatchNorm's own forward pass: on a CPU several times as fast as var_mean or two sums, compiled or not. An
    operator of our own because torch.compile does not know it.
    """
    # The running statistics to update are scratch: their precision is that of the result.
    scratch = x.new_zeros(2, x.shape[1], dtype=at_least_fp32(x))
    return torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)


@channel_moments.register_fake
def _(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(x.new_empty(x.shape[1], dtype=at_least_fp32(x)) for _ in range(2))


def affine_gradient(
    grad_mean: torch.Tensor, grad_var: torch.Tensor, mean: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(slope, offset), each of mean's shape: the gradient of means and biased variances over `count` values x is
    slope * x + offset.

    d mean / dx = 1 / count, d var / dx = 2 (x - mean) / count.
    """
    slope = 2 * grad_var / count
    return slope, grad_mean / count - slope * mean


def cut_size(length: int, patch: int) -> int:
    """The height or width in pixels of the map that is cut, of one of `length` pixels."""
    return max(length // patch, 1) * patch


def cutting(x: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices that resize the rows and the columns of x to the map that is cut."""
    return tuple(bilinear(length, cut_size(length, patch), x.device, at_least_fp32(x)) for length in x.shape[2:])


def resized(x: torch.Tensor, patch: int) -> torch.Tensor:
    """The map of x that is cut into patches; x itself where its height and width are multiples of `patch`."""
    if all(length == cut_size(length, patch) for length in x.shape[2:]):
        return x
    return resampled(x, *cutting(x, patch))


def patch_moments(cut: torch.Tensor, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each patch of a map that `resized` gave, each (P,), row by row."""
    found = _of_sums(*(part.sum(0) for part in _pixel_sums(cut)), cut.shape[0] * cut.shape[1], patch)
    return tuple(part.to(at_least_fp32(cut)) for part in found)


def moments(x: torch.Tensor, patch: int) -> Moments:
    """Mean and biased variance of x's channels, each (C,), and of its patches, each (P,)."""
    return *channel_moments(x), *patch_moments(resized(x, patch), patch)


def image_moments(x: torch.Tensor, patch: int | None = None) -> tuple[torch.Tensor, ...]:
    """Mean and biased variance of each image's channels, each (N, C), and with `patch` of its patches, each (N, P)."""
    x = x.to(at_least_fp32(x))
    square = x.square()
    mean = x.mean((2, 3))
    var = (square.mean((2, 3)).double() - mean.double().square()).clamp_min(0)
    if patch is None:
        return mean, var.to(mean.dtype)
    cut = resized(x, patch)
    sums = (x.sum(1).double(), square.sum(1).double()) if cut is x else _pixel_sums(cut)
    return mean, *(part.to(mean.dtype) for part in (var, *_of_sums(*sums, x.shape[1], patch)))


def _pixel_sums(cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums over the channels of x and of its square, each (N, H, W) in float64; each reads x once."""
    cut = cut.to(at_least_fp32(cut))  # once for both, where it is in low precision
    return cut.sum(1).double(), torch.linalg.vector_norm(cut, dim=1).double().square()


def _of_sums(total: torch.Tensor, squares: torch.Tensor, values: int, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of sums (..., H, W) over `values` numbers a pixel the mean and biased variance of each patch, (..., P).

    In float64 the difference of squares loses nothing; what fp32 lost in the sums is small beside the square.
    """
    lead, (height, width) = total.shape[:-2], total.shape[-2:]
    shape = (*lead, height // patch, patch, width // patch, patch)
    mean, square = (part.reshape(shape).sum((-3, -1)).flatten(-2) / (values * patch**2) for part in (total, squares))
    return mean, (square - mean.square()).clamp_min(0)
