"""What a convolution gets, measured on its way: one pass over the input for its gradient, whatever is asked of it."""

from __future__ import annotations

import torch

from utils.nets.moments import (
    affine_gradient,
    at_least_fp32,
    channel_moments,
    cut_size,
    cutting,
    patch_moments,
    resized,
)
from utils.nets.resampling import resampled


class _ConvolutionInput(torch.autograd.Function):
    """x (N, C, H, W) itself, its channels' means and biased variances (C,), and its patches' (P,), in fp32 or above.

    As in _MatchedNorm, the gradients of moments are affine in x. Those of channels and of patches, and the one that
    comes back from the convolution, are added in one pass. Nothing is kept but x.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, patch: int) -> tuple[torch.Tensor, ...]:
        mean, var = channel_moments(x)
        patch_mean, patch_var = patch_moments(resized(x, patch), patch)
        ctx.save_for_backward(x, mean, patch_mean)
        ctx.patch = patch
        return x.view_as(x), mean, var, patch_mean, patch_var

    @staticmethod
    def backward(ctx, grad, grad_mean, grad_var, grad_patch_mean, grad_patch_var) -> tuple[torch.Tensor, None]:
        x, mean, patch_mean = ctx.saved_tensors
        dtype, patch = at_least_fp32(x), ctx.patch
        count, channels, height, width = x.shape
        found = affine_gradient(grad_mean, grad_var, mean, count * height * width)
        slope, offset = (part.view(-1, 1, 1) for part in found)

        rows, columns = cut_size(height, patch), cut_size(width, patch)
        found = affine_gradient(grad_patch_mean, grad_patch_var, patch_mean, count * channels * patch**2)
        patch_slope, patch_offset = (_spread(part, rows, columns, patch) for part in found)
        if (rows, columns) == (height, width):
            slope, offset = (
                part.contiguous(memory_format=torch.channels_last)[0]
                for part in ((slope + patch_slope)[None], (offset + patch_offset)[None])
            )
            found = torch.addcmul(offset, x.to(dtype), slope).add_(grad)
        else:
            found = torch.addcmul(offset, x.to(dtype), slope).add_(grad)
            down, across = cutting(x, patch)
            cut = torch.addcmul(patch_offset, resampled(x, down, across), patch_slope)
            found = found.add_(resampled(cut, down.T, across.T))
        return found.to(x.dtype), None


def _spread(values: torch.Tensor, rows: int, columns: int, patch: int) -> torch.Tensor:
    """(P,) of patches -> (rows, columns) of their pixels."""
    return values.view(rows // patch, 1, columns // patch, 1).expand(-1, patch, -1, patch).reshape(rows, columns)


def convolution_input(x: torch.Tensor, patch: int) -> tuple[torch.Tensor, ...]:
    """(x, mean, var, patch_mean, patch_var): the convolution gets the first, so that gradients meet in one pass."""
    return _ConvolutionInput.apply(x, patch)
