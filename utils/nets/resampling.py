"""Resampling by matrices: as two products a map keeps one shape of graph, and its gradient sums in a fixed order.

The gradient of PyTorch's own resizing is a slow scatter on a GPU that is to give the same bytes each time.
"""

from __future__ import annotations

import torch
from torch.nn.functional import adaptive_avg_pool1d, interpolate


def bilinear(
    length: int,
    size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
    span: int | None = None,
) -> torch.Tensor:
    """The (size, length) matrix that resizes pixels start .. start + span of a line of `length`, or all, to `size`.

    Where `span` is `size` the pixels only move, and may lie beyond the line: there they are zeros.
    """
    span = length if span is None else span
    if span == size:
        places = torch.arange(length, device=device)
        return (places == torch.arange(start, start + size, device=device)[:, None]).to(dtype)
    own = torch.eye(length, device=device, dtype=dtype)[None, :, start : start + span]
    return interpolate(own, size=size, mode="linear")[0].T


def averaging(length: int, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The (size, length) matrix that averages a line of `length` pixels to `size`, as adaptive pooling does."""
    return adaptive_avg_pool1d(torch.eye(length, device=device, dtype=dtype)[None], size)[0].T


def resampled(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x (..., H, W) by matrices (h, H) and (w, W) -> (..., h, w), in their precision."""
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x.to(rows.dtype) @ columns.T
