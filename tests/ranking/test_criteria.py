"""Criteria: which images of a class are selected, and in which order."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT
from helpers import few
from ranking.criteria import CRITERIA, Candidates

# In ascending order: c a e b d
FIVE = {"a": 0.2, "b": 0.7, "c": 0.1, "d": 0.9, "e": 0.5}
FOUR = {"a": 0.2, "b": 0.7, "c": 0.1, "e": 0.5}  # c a e b


def select(paths, scores, ipc, criterion, *stream):
    """The chosen paths, position 0 first."""
    return [paths[index] for index in CRITERIA[criterion].choose(Candidates(paths, stream, scores), ipc)]


def chosen(scores, ipc, criterion):
    return "".join(select(list(scores), list(scores.values()), ipc, criterion))


@pytest.mark.parametrize(
    "scores, criterion, order",
    [
        (FIVE, "top", "dbeac"),
        (FIVE, "min", "caebd"),
        (FIVE, "medium", "bdeac"),
        (FOUR, "top", "beac"),
        (FOUR, "min", "caeb"),
        (FOUR, "medium", "ebac"),
        ({"a": 0.3}, "top", "a"),
        ({"a": 0.3}, "min", "a"),
        ({"a": 0.3}, "medium", "a"),
        ({"a": 0.3, "b": 0.1}, "medium", "ab"),
        # Equal scores go by path, whatever the direction.
        ({"c": 0.5, "a": 0.5, "b": 0.5}, "top", "abc"),
        ({"c": 0.5, "a": 0.5, "b": 0.5}, "min", "abc"),
        ({"c": 0.5, "a": 0.5, "b": 0.5}, "medium", "cba"),
        ({"d": 1.0, "c": 0.5, "a": 0.5, "b": 1.0}, "top", "bdac"),
    ],
)
def test_orders_by_hand(scores, criterion, order):
    for ipc in range(1, len(scores) + 1):
        assert chosen(scores, ipc, criterion) == order[:ipc]
        assert chosen(dict(reversed(scores.items())), ipc, criterion) == order[:ipc], "independent of the listing"


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_medium_goes_outwards_as_the_released_code_does(values):
    """Places mid, mid + 1, mid - 1, mid + 2, ... in ascending order, from 0, with mid = ceil(n / 2).

    Places that are not there are left out. Equal scores stand by path.
    """
    paths = [f"{i:02d}" for i in range(len(values))]
    scores = [value / 20 for value in values]
    full = select(paths, scores, len(paths), "medium")
    assert sorted(full) == paths
    for ipc in range(1, len(paths)):
        assert select(paths, scores, ipc, "medium") == full[:ipc], "nested"
    ascending = sorted(paths, key=lambda path: (scores[int(path)], path))
    mid = math.ceil(len(paths) / 2)
    places = [mid]
    for distance in range(1, len(paths) + 1):
        places += [mid + distance, mid - distance]
    assert full == [ascending[place] for place in places if 0 <= place < len(paths)]


def test_random_belongs_to_its_seed_and_not_to_the_listing():
    paths = [f"{i:03d}.png" for i in range(100)]
    first = select(paths, [0.0] * 100, 20, "random", 0, "class")
    assert len(set(first)) == 20 and set(first) <= set(paths)
    assert first != sorted(first)
    shuffled = [paths[i] for i in torch.randperm(100, generator=torch.Generator().manual_seed(5))]
    assert select(shuffled, list(range(100)), 20, "random", 0, "class") == first
    assert select(paths, [0.0] * 100, 10, "random", 0, "class") == first[:10], "nested"
    assert select(paths, [0.0] * 100, 20, "random", 1, "class") != first
    assert select(paths, [0.0] * 100, 20, "random", 0, "other") != first


@few
@given(st.integers(2, 12), st.integers(0, 2**30))
def test_easy_herding_is_herding_of_the_easier_half(n, seed):
    """By hand: of the upper half by score, each choice keeps the mean of the chosen closest to that half's mean."""
    random = torch.Generator().manual_seed(seed)
    features, scores = torch.randn(n, 3, generator=random), torch.rand(n, generator=random).tolist()
    images = Candidates([f"{i:02d}" for i in range(n)], (), scores, features)
    for ipc in (1, math.ceil(n / 2), n):
        easier = sorted(range(n), key=lambda i: -scores[i])[: max(math.ceil(n / 2), ipc)]
        unit = {i: (features[i].double() / features[i].double().norm()) for i in easier}
        mean, found = sum(unit.values()) / len(unit), CRITERIA["easy-herding"].choose(images, ipc)
        assert len(set(found)) == ipc and set(found) <= set(easier)
        for number in range(1, ipc + 1):
            sums = {i: sum(unit[j] for j in [*found[: number - 1], i]) for i in set(easier) - set(found[: number - 1])}
            gaps = {i: float((mean - total / number).norm()) for i, total in sums.items()}
            assert gaps[found[number - 1]] <= min(gaps.values()) + 1e-9


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_chooses_so_many_different_images(criterion):
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    images = Candidates([f"{i}.png" for i in range(9)], (0, "class"), [i / 10 for i in range(9)], features)
    for ipc in (1, 4, 9):
        found = CRITERIA[criterion].choose(images, ipc)
        assert len(set(found)) == ipc and set(found) <= set(range(9))


def test_bash_can_ask_for_the_names():
    def ask(*names):
        return subprocess.run(
            [sys.executable, "-m", "ranking.criteria", *names], cwd=ROOT, capture_output=True, text=True
        )

    listed = ask()
    assert listed.returncode == 0 and listed.stdout.split() == list(CRITERIA)
    assert ask("top", "herding").returncode == 0
    refused = ask("top", "best")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: ") and "'best'" in refused.stderr and "medium" in refused.stderr
