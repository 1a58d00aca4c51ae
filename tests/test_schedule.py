"""Who is active when, the learning rate, the crop curriculum and the views."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as F

from helpers import few
from recover.schedule import View, count_rounds, crop_scale, draw_views, learning_rate, round_of_ranks
from utils.files import UserError

CPU = torch.device("cpu")


def group_sizes(ipc, rounds):
    ranks = round_of_ranks(ipc, rounds)
    assert ranks == sorted(ranks), "ranks must join in order"
    return [ranks.count(group) for group in range(rounds)]


@pytest.mark.parametrize("ipc, rounds, sizes", [
    (1, 8, [1, 0, 0, 0, 0, 0, 0, 0]),
    (10, 8, [2, 2, 1, 1, 1, 1, 1, 1]),
    (50, 8, [7, 7, 6, 6, 6, 6, 6, 6]),
    (100, 8, [13, 13, 13, 13, 12, 12, 12, 12]),
    (7, 3, [3, 2, 2]),
    (3, 8, [1, 1, 1, 0, 0, 0, 0, 0]),
    (5, 1, [5]),
])
def test_groups(ipc, rounds, sizes):
    assert group_sizes(ipc, rounds) == sizes


@few
@given(ipc=st.integers(1, 120), rounds=st.integers(1, 20))
def test_groups_are_as_even_as_can_be(ipc, rounds):
    sizes = group_sizes(ipc, rounds)
    assert sum(sizes) == ipc
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True), "the first groups take the remainder"


@pytest.mark.parametrize("ipc, share", [(8, 0.5625), (10, 51 / 80), (1, 1.0)])  # 51 = 2*8 + 2*7 + 6+5+4+3+2+1
def test_share_of_image_iterations_in_8_rounds(ipc, share):
    assert sum(8 - group for group in round_of_ranks(ipc, 8)) / (8 * ipc) == share


@pytest.mark.parametrize("iterations, length, rounds", [
    (4000, 500, 8), (1000, 1000, 1), (4000, 0, 1), (7, 0, 1), (7, 1, 7)])
def test_number_of_rounds(iterations, length, rounds):
    assert count_rounds(iterations, length) == rounds


@pytest.mark.parametrize("iterations, length, remedy", [(4001, 500, "4000"), (400, 500, "500"), (999, 500, "1000")])
def test_iterations_must_fill_the_rounds(iterations, length, remedy):
    with pytest.raises(UserError, match="multiple") as error:
        count_rounds(iterations, length)
    for number in str(iterations), str(length), remedy:
        assert number in str(error.value)


def test_learning_rate_is_one_cosine():
    assert learning_rate(0, 4000, 0.25) == pytest.approx(0.25)
    assert learning_rate(1000, 4000, 0.25) == pytest.approx(0.25 * (2 + 2**0.5) / 4)
    assert learning_rate(2000, 4000, 0.25) == pytest.approx(0.125)
    assert learning_rate(4000, 4000, 0.25) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("curriculum, milestone, expected", [
    # iteration of 100: smallest share of the image, between 1 and 0.2
    ("cosine", 0.5, {0: 1, 25: 0.6, 50: 0.2, 51: 0.2, 99: 0.2}),
    ("cosine", 1.0, {0: 1, 50: 0.6, 100: 0.2}),
    ("linear", 0.5, {0: 1, 10: 0.84, 25: 0.6, 50: 0.2, 99: 0.2}),
    ("step", 0.5, {0: 1, 49: 1, 50: 0.2, 99: 0.2}),
    ("cosine", 0, {0: 0.2, 99: 0.2}),
    ("linear", 0, {0: 0.2, 99: 0.2}),
    ("step", 0, {0: 0.2, 99: 0.2}),
])
def test_crop_curriculum(curriculum, milestone, expected):
    for iteration, scale in expected.items():
        assert crop_scale(iteration, 100, curriculum, milestone, 0.2) == pytest.approx(scale), iteration


def test_cosine_crop_off_the_middle():
    # A quarter of the way: left = (1 + cos 45 degrees) / 2.
    assert crop_scale(10, 40, "cosine", 1.0, 0.08) == pytest.approx(0.08 + 0.92 * (2 + 2**0.5) / 4)


@st.composite
def boxes(draw):
    size = draw(st.integers(2, 20))
    height, width = draw(st.integers(1, size)), draw(st.integers(1, size))
    top, left = draw(st.integers(0, size - height)), draw(st.integers(0, size - width))
    roll = draw(st.tuples(st.integers(-4, 4), st.integers(-4, 4)))
    return size, View((top, left, height, width), draw(st.booleans()), roll)


@few
@given(boxes())
def test_matrices_are_crop_flip_and_roll(box):
    size, view = box
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
    for view in draw_views(size, [scale] * 10, 0, seed):
        top, left, height, width = view.crop
        assert 0 <= top and 0 <= left and top + height <= size and left + width <= size
        assert height >= 1 and width >= 1
        # Each side is rounded to whole pixels.
        assert (height + 0.5) * (width + 0.5) >= scale * size * size - 1e-6
        # Ratios from 3/4 to 4/3.
        assert (height - 0.5) / (width + 0.5) <= 4 / 3 and (width - 0.5) / (height + 0.5) <= 4 / 3
        assert view.roll == (0, 0)


def test_scales_are_used_in_their_order():
    views = draw_views(64, [1.0] * 20 + [0.08] * 200, 0, "order")
    areas = [view.crop[2] * view.crop[3] / 64**2 for view in views]
    assert min(areas[:20]) > 0.95
    assert min(areas[20:]) < 0.2 and max(areas[20:]) > 0.8, "the share is drawn between the smallest and 1"


def test_flips_and_rolls_are_drawn_evenly():
    views = draw_views(8, [1.0] * 400, 2, "even")
    assert 150 < sum(view.flip for view in views) < 250
    for axis in range(2):
        assert {view.roll[axis] for view in views} == {-2, -1, 0, 1, 2}
    assert any(view.roll[0] != view.roll[1] for view in views)


def test_views_belong_to_their_stream():
    def draw(*stream):
        return draw_views(32, [0.08] * 20, 2, *stream)

    torch.manual_seed(1)
    first = draw(0, "recover", 3)
    torch.manual_seed(2)
    torch.rand(5)
    assert draw(0, "recover", 3) == first
    assert draw(0, "recover", 4) != first
    assert draw(1, "recover", 3) != first
