"""Herding and k-center: the definitions, by brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from ranking.coreset import herding, k_center

CASES = st.tuples(st.integers(2, 12), st.integers(1, 4), st.integers(0, 2**30))


def rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@few
@given(CASES)
def test_herding_keeps_the_mean(case):
    """Each choice is the one that brings the mean of the chosen closest to the mean of all."""
    found = rows(*case)
    unit = found.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    chosen = herding(found, len(found))
    assert sorted(chosen) == list(range(len(found)))
    for number in range(len(chosen)):
        distances = {
            k: np.linalg.norm(unit.mean(0) - unit[[*chosen[:number], k]].mean(0))
            for k in range(len(found))
            if k not in chosen[:number]
        }
        assert distances[chosen[number]] == pytest.approx(min(distances.values()), abs=1e-9)


@few
@given(CASES)
def test_k_center_takes_the_farthest(case):
    found = rows(*case)
    points = found.double().numpy()
    chosen = k_center(found, len(found))
    assert sorted(chosen) == list(range(len(found)))
    from_mean = np.linalg.norm(points - points.mean(0), axis=1)
    assert from_mean[chosen[0]] == pytest.approx(from_mean.min())
    for number in range(1, len(chosen)):
        gaps = {
            k: min(np.linalg.norm(points[k] - points[j]) for j in chosen[:number])
            for k in range(len(found))
            if k not in chosen[:number]
        }
        assert gaps[chosen[number]] == pytest.approx(max(gaps.values()), abs=1e-9)


def test_twins_are_taken_once_each():
    found = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert sorted(herding(found, 4)) == sorted(k_center(found, 4)) == [0, 1, 2, 3]
