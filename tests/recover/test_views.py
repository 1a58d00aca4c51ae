"""The views of a step: crop, flip and roll, as matrices and as they are drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as F

from helpers import few, recipe
from recover.views import View, draw_views

CPU = torch.device("cpu")


def draw(size, scales, jitter, *stream, **changed):
    return draw_views([size] * len(scales), scales, recipe(jitter=jitter, **changed), *stream)


@st.composite
def views(draw):
    size = draw(st.integers(2, 20))
    height, width = draw(st.integers(1, size)), draw(st.integers(1, size))
    top, left = draw(st.integers(0, size - height)), draw(st.integers(0, size - width))
    roll = draw(st.tuples(st.integers(-4, 4), st.integers(-4, 4)))
    return size, View((top, left, height, width), draw(st.booleans()), roll)


@few
@given(views())
def test_matrices_are_crop_flip_and_roll(drawn):
    size, view = drawn
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    expected = F.resized_crop(images, *view.crop, [size, size], F.InterpolationMode.BILINEAR)
    expected = F.hflip(expected) if view.flip else expected
    expected = expected.roll(view.roll, (-2, -1))
    rows, columns = view.matrices(size, CPU)
    assert rows.shape == columns.shape == (size, size)
    torch.testing.assert_close(rows @ images @ columns, expected, rtol=1e-5, atol=1e-5)


@few
@given(size=st.integers(8, 64), scale=st.floats(0.08, 1), seed=st.integers(0, 99))
def test_drawn_crops(size, scale, seed):
    for view in draw(size, [scale] * 10, 0, seed):
        top, left, height, width = view.crop
        assert 0 <= top and 0 <= left and top + height <= size and left + width <= size
        assert height >= 1 and width >= 1
        # Each side is rounded to whole pixels.
        assert (height + 0.5) * (width + 0.5) >= scale * size * size - 1e-6
        # Ratios from 3/4 to 4/3.
        assert (height - 0.5) / (width + 0.5) <= 4 / 3 and (width - 0.5) / (height + 0.5) <= 4 / 3
        assert view.roll == (0, 0)


def test_scales_are_used_in_their_order():
    drawn = draw(64, [1.0] * 20 + [0.08] * 200, 0, "order")
    areas = [view.crop[2] * view.crop[3] / 64**2 for view in drawn]
    assert min(areas[:20]) > 0.95
    assert min(areas[20:]) < 0.2 and max(areas[20:]) > 0.8, "the share is drawn between the smallest and 1"


def test_flips_and_rolls_are_drawn_evenly():
    drawn = draw(8, [1.0] * 400, 2, "even")
    assert 150 < sum(view.flip for view in drawn) < 250
    for axis in range(2):
        assert {view.roll[axis] for view in drawn} == {-2, -1, 0, 1, 2}
    assert any(view.roll[0] != view.roll[1] for view in drawn)


@pytest.mark.parametrize("other", [(0, "recover", 4), (1, "recover", 3)])
def test_views_belong_to_their_stream(other):
    def drawn(*stream):
        return draw(32, [0.08] * 20, 2, *stream)

    torch.manual_seed(1)
    first = drawn(0, "recover", 3)
    torch.manual_seed(2)
    torch.rand(5)
    assert drawn(0, "recover", 3) == first
    assert drawn(*other) != first
