"""Resampling by matrices against PyTorch's own, which resizes both axes at once."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from utils.nets.resampling import averaging, bilinear, resampled

CPU = torch.device("cpu")


def image(height, width, dtype=torch.float32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height), dtype=dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [(7, 5), (16, 9), (3, 24)])
def test_bilinear(size, dtype, tolerance):
    x = image(7, 12, dtype)
    rows, columns = (bilinear(length, wanted, CPU, dtype) for length, wanted in zip(x.shape[2:], size))
    expected = interpolate(x, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resampled(x, rows, columns), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("box", [(0, 0, 3, 12), (1, 3, 4, 6), (6, 11, 1, 1)])
def test_bilinear_of_a_part(box):
    """No pixel outside of the part has a share in it."""
    x, (top, left, height, width) = image(7, 12), box
    rows, columns = bilinear(7, 9, CPU, start=top, span=height), bilinear(12, 9, CPU, start=left, span=width)
    part = x[:, :, top : top + height, left : left + width]
    expected = interpolate(part, size=(9, 9), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resampled(x, rows, columns), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("start", [-2, 0, 3])
def test_a_part_of_the_wanted_size_moves_alone_and_zeros_come_in(start):
    line = torch.arange(1.0, 7)
    expected = [line[k].item() if 0 <= k < 6 else 0 for k in range(start, start + 6)]
    assert (bilinear(6, 6, CPU, start=start, span=6) @ line).tolist() == expected


@pytest.mark.parametrize("size", [4, 7, 20])
def test_averaging(size):
    x = image(7, 12)
    found = resampled(x, averaging(7, size, CPU), averaging(12, size, CPU))
    torch.testing.assert_close(found, adaptive_avg_pool2d(x, size), rtol=1e-5, atol=1e-5)


def test_it_is_as_exact_beside_a_network_in_bf16():
    x, matrix = image(8, 8), bilinear(8, 16, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found = resampled(x, matrix, matrix)
    assert torch.equal(found, resampled(x, matrix, matrix))
