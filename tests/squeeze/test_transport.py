"""Wasserstein barycenters: cases with a known answer, and POT and a linear program called directly."""

import sys

import numpy as np
import pytest

from squeeze import transport
from squeeze.transport import barycenter
from utils.run.errors import UserError

ot = pytest.importorskip("ot")
linprog = pytest.importorskip("scipy.optimize").linprog  # which comes with POT


def transport_cost(points, weights, features):
    """The least cost of bringing the weights at the points to even weights at the features, by a linear program."""
    cost = ((points[:, None] - features[None]) ** 2).sum(-1)
    rows = np.kron(np.eye(len(points)), np.ones(len(features)))
    columns = np.kron(np.ones(len(points)), np.eye(len(features)))
    target = np.concatenate([weights, np.full(len(features), 1 / len(features))])
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=target)
    assert found.success
    return found.fun


@pytest.mark.parametrize("learn_weights", [False, True])
def test_one_point_is_the_mean(learn_weights):
    features = np.array([[1.0, 5.0], [4.0, -1.0]])
    points, weights = barycenter(features, np.array([[30.0, -20.0]]), learn_weights)
    np.testing.assert_allclose(points, [[2.5, 2.0]])
    assert weights.tolist() == [1.0]


def test_as_many_points_as_features_are_these():
    features = np.array([[1.0, 5.0], [4.0, -1.0]])
    points, weights = barycenter(features, np.array([[3.0, 0.0], [1.5, 1.0]]), False)
    np.testing.assert_allclose(points, [[4.0, -1.0], [1.0, 5.0]], atol=1e-12)
    assert weights.tolist() == [0.5, 0.5]


def test_two_points_for_two_clusters_share_the_features_evenly():
    """Three of four are at 0: half of the mass is there, the rest is a third of the way back from 1."""
    points, _ = barycenter(np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([[0.1], [0.8]]), False)
    np.testing.assert_allclose(points, [[0.0], [0.5]], atol=1e-12)


def test_even_weights_are_what_pot_gives():
    random = np.random.default_rng(0)
    features, start = random.normal(size=(40, 6)), random.normal(size=(5, 6))
    expected = ot.lp.free_support_barycenter([features], [ot.unif(40)], start.copy())
    points, weights = barycenter(features, start, False)
    np.testing.assert_array_equal(points, expected)
    np.testing.assert_allclose(weights, 0.2)
    assert transport_cost(points, weights, features) < 0.7 * transport_cost(start, weights, features)


def test_learned_weights_are_the_clusters_sizes():
    """Thirty features at one place, ten near it; a point far from all of them gets nothing, but is not lost."""
    features = np.repeat([[0.0, 0.0], [1.0, 0.0]], [30, 10], axis=0)
    points = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 10.0]])
    weights = transport._learned(points, features)
    np.testing.assert_allclose(weights, [0.75, 0.25, 0.0], atol=0.05)
    assert weights.sum() == pytest.approx(1) and 0 < weights[2] < 1e-6


@pytest.mark.parametrize("distance, share", [(0.3, 0.3), (4.0, 1.0)])
def test_learned_weights_against_the_best_and_the_even_ones(distance, share):
    """The best weights of fixed points are the shares of the features that are nearest to each.

    Where the points lie far apart the steps swing, and even weights are the least that is found.
    """
    random = np.random.default_rng(1)
    centres = distance * random.normal(size=(3, 20))
    features = np.concatenate([centre + random.normal(size=(n, 20)) for centre, n in zip(centres, (40, 12, 8))])
    points = centres + 0.1 * random.normal(size=centres.shape)
    nearest = ((points[:, None] - features[None]) ** 2).sum(-1).argmin(0)
    best = transport_cost(points, np.bincount(nearest, minlength=3) / 60, features)
    even = transport_cost(points, np.full(3, 1 / 3), features)
    found = transport_cost(points, transport._learned(points, features), features)
    assert best <= found <= best + share * (even - best) + 1e-9


def test_all_rounds_go_a_fifth_of_the_way_where_the_weights_do_not_change():
    """Each point is the nearest of one feature, so that even weights are the best in each round."""
    features, start = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[3.0, 4.0], [-2.0, 5.0]])
    points, weights = barycenter(features, start, True)
    left = 0.8**10
    np.testing.assert_allclose(points, left * start + (1 - left) * features)
    assert weights.tolist() == [0.5, 0.5]


def test_rounds_with_several_points():
    random = np.random.default_rng(2)
    features, start = np.abs(random.normal(size=(60, 16))), random.normal(size=(4, 16))
    features[:45] += 2
    points, weights = barycenter(features, start, True)
    assert weights.sum() == pytest.approx(1) and (weights > 0).all() and np.ptp(weights) > 0.1
    assert transport_cost(points, weights, features) < 0.5 * transport_cost(start, np.full(4, 0.25), features)


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(UserError, match="POT, which is not installed: bash scripts/setup.sh requirements-methods.txt"):
        transport.pot()
