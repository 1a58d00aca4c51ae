"""EarlyLate: groups, starts, the learning rate and the crop curriculum, against the rules of the paper."""

from fractions import Fraction
from math import cos, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from recover.earlylate import EarlyLate
from utils.run.errors import UserError


def schedule(ipc=10, iterations=4000, round_iterations=500, **changed):
    settings = dict(lr=0.25, lr_schedule="cosine", curriculum="cosine", milestone=1.0, min_crop=0.08)
    return EarlyLate(ipc, iterations, round_iterations, **{**settings, **changed})


def group_sizes(ipc, rounds):
    rounds_of = schedule(ipc, rounds, 1).round_of
    assert rounds_of == sorted(rounds_of), "images join in the order of their positions"
    return [rounds_of.count(group) for group in range(rounds)]


@pytest.mark.parametrize(
    "ipc, rounds, sizes",
    [
        (1, 8, [1, 0, 0, 0, 0, 0, 0, 0]),
        (10, 8, [2, 2, 1, 1, 1, 1, 1, 1]),
        (50, 8, [7, 7, 6, 6, 6, 6, 6, 6]),
        (100, 8, [13, 13, 13, 13, 12, 12, 12, 12]),
        (7, 3, [3, 2, 2]),
        (3, 8, [1, 1, 1, 0, 0, 0, 0, 0]),
        (5, 1, [5]),
    ],
)
def test_groups(ipc, rounds, sizes):
    assert group_sizes(ipc, rounds) == sizes


@few
@given(ipc=st.integers(1, 120), rounds=st.integers(1, 20))
def test_groups_are_as_even_as_can_be(ipc, rounds):
    sizes = group_sizes(ipc, rounds)
    assert sum(sizes) == ipc
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True), "the first groups take the remainder"


def dealt(ipc, rounds, round_iterations):
    """The first iteration of each position: places are dealt to the groups one by one, and filled in order."""
    places = [0] * rounds
    for k in range(ipc):
        places[k % rounds] += 1
    return [group * round_iterations for group, count in enumerate(places) for _ in range(count)]


@few
@given(ipc=st.integers(1, 120), rounds=st.integers(1, 20), round_iterations=st.integers(1, 500))
def test_each_image_starts_with_its_group_and_stays_to_the_end(ipc, rounds, round_iterations):
    iterations = rounds * round_iterations
    found, starts = schedule(ipc, iterations, round_iterations), dealt(ipc, rounds, round_iterations)
    assert found.start_of == starts
    assert found.updates_of == [sum(start <= i for i in range(iterations)) for start in starts]
    assert found.updates_of[0] == iterations
    if ipc >= rounds:
        assert found.updates_of[-1] == round_iterations


def share(ipc, rounds):
    """Of the image-iterations of a run in which all images take part from the start."""
    found = schedule(ipc, rounds * 500, 500)
    return Fraction(sum(found.updates_of), ipc * found.iterations)


def test_share_of_image_iterations():
    assert share(8, 8) == Fraction("0.5625")
    assert share(10, 8) == Fraction("0.6375")
    assert share(1, 8) == 1


@few
@given(ipc=st.integers(1, 300))
def test_8_rounds_never_take_less_than_their_bound(ipc):
    assert share(ipc, 8) >= Fraction("0.5625")
    assert (share(ipc, 8) == Fraction("0.5625")) == (ipc % 8 == 0), "which is met where the groups are even"


@pytest.mark.parametrize(
    "iterations, length, rounds", [(4000, 500, 8), (1000, 1000, 1), (4000, 0, 1), (7, 0, 1), (7, 1, 7)]
)
def test_number_of_rounds(iterations, length, rounds):
    assert schedule(10, iterations, length).rounds == rounds


@pytest.mark.parametrize("ipc, rounds", [(1, 1), (3, 3), (8, 8), (9, 8)])
def test_no_more_rounds_begin_than_there_are_images(ipc, rounds):
    found = schedule(ipc, 4000, 500)
    assert found.rounds == rounds == len(set(found.round_of))


@pytest.mark.parametrize("ipc", [1, 10])
def test_without_rounds_all_start_at_once(ipc):
    found = schedule(ipc, 1000, 0)
    assert (found.round_of, found.start_of, found.updates_of) == ([0] * ipc, [0] * ipc, [1000] * ipc)


@pytest.mark.parametrize("iterations, length, remedy", [(4001, 500, "4000"), (400, 500, "500"), (999, 500, "1000")])
def test_iterations_must_fill_the_rounds(iterations, length, remedy):
    with pytest.raises(UserError, match="multiple") as error:
        schedule(10, iterations, length)
    for number in str(iterations), str(length), remedy:
        assert number in str(error.value)


def test_learning_rate_is_one_cosine():
    found = schedule(lr=0.25)
    assert found.learning_rate(0) == pytest.approx(0.25)
    assert found.learning_rate(1000) == pytest.approx(0.25 * (2 + 2**0.5) / 4)
    assert found.learning_rate(2000) == pytest.approx(0.125)
    assert found.learning_rate(4000) == pytest.approx(0, abs=1e-12)


@few
@given(rounds=st.integers(1, 9), round_iterations=st.integers(1, 50), lr=st.floats(1e-3, 10))
def test_rounds_do_not_restart_the_learning_rate(rounds, round_iterations, lr):
    iterations = rounds * round_iterations
    found = schedule(4, iterations, round_iterations, lr=lr)
    rates = [found.learning_rate(i) for i in range(iterations + 1)]
    assert rates == sorted(rates, reverse=True)
    for i, rate in enumerate(rates):
        assert rate + rates[iterations - i] == pytest.approx(lr), "a cosine is symmetric about its middle"
        assert rate == pytest.approx(lr / 2 + lr / 2 * cos(pi * i / iterations), abs=1e-9)


@pytest.mark.parametrize(
    "curriculum, milestone, expected",
    [
        # iteration of 100: smallest share of the image, between 1 and 0.2
        ("cosine", 0.5, {0: 1, 25: 0.6, 50: 0.2, 51: 0.2, 99: 0.2}),
        ("cosine", 1.0, {0: 1, 50: 0.6, 100: 0.2}),
        ("linear", 0.5, {0: 1, 10: 0.84, 25: 0.6, 50: 0.2, 99: 0.2}),
        ("step", 0.5, {0: 1, 49: 1, 50: 0.2, 99: 0.2}),
        ("cosine", 0.0, {0: 0.2, 99: 0.2}),
        ("linear", 0.0, {0: 0.2, 99: 0.2}),
        ("step", 0.0, {0: 0.2, 99: 0.2}),
    ],
)
def test_crop_curriculum(curriculum, milestone, expected):
    found = schedule(10, 100, 0, curriculum=curriculum, milestone=milestone, min_crop=0.2)
    for iteration, scale in expected.items():
        assert found.min_scale(iteration) == pytest.approx(scale), iteration


def test_cosine_crop_off_the_middle():
    # A quarter of the way: left = (1 + cos 45 degrees) / 2.
    found = schedule(10, 40, 0)
    assert found.min_scale(10) == pytest.approx(0.08 + 0.92 * (2 + 2**0.5) / 4)


@few
@given(
    curriculum=st.sampled_from(["cosine", "linear", "step"]),
    milestone=st.floats(0, 1),
    min_crop=st.floats(0.01, 1),
    iterations=st.integers(1, 300),
)
def test_the_crop_only_shrinks(curriculum, milestone, min_crop, iterations):
    found = schedule(10, iterations, 0, curriculum=curriculum, milestone=milestone, min_crop=min_crop)
    scales = [found.min_scale(i) for i in range(iterations)]
    assert all(min_crop - 1e-12 <= scale <= 1 + 1e-12 for scale in scales)
    assert all(after <= before + 1e-12 for before, after in zip(scales, scales[1:]))
    assert all(scale == pytest.approx(min_crop) for i, scale in enumerate(scales) if i >= milestone * iterations)
    if milestone * iterations >= 1e-6:
        assert scales[0] == pytest.approx(1)
