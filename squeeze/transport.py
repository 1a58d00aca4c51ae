"""Wasserstein barycenters: a few points, perhaps weighted, that stand for the features of a class (WMDD)."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from utils.run.packages import needed

# WMDD (arXiv 2311.18531) and its released code, of the weights.
ROUNDS = 10  # of weights, then points
STEPS = 100  # of mirror descent a round
STEP_SIZE = 10.0
SHARE = 0.2  # of the way to the new points that a round goes
# Ours: mirror descent can bring a weight to nothing, and a point of no weight is nowhere, and its image is not seen.
LEAST = 1e-6  # of a weight, as a share of the even one


def pot() -> ModuleType:
    """The library POT. Raises UserError where it is not installed: nothing else needs it."""
    return needed("POT", "barycenters")


def barycenter(features: np.ndarray, start: np.ndarray, learn_weights: bool) -> tuple[np.ndarray, np.ndarray]:
    """The points (k, D) and their weights (k,), float64, that stand for features (n, D) of even weights.

    The fixed points of the 2-Wasserstein distance to k points, which are found from `start` (k, D); with
    `learn_weights` in rounds, the weights before the points: of the start a share (1 - SHARE) ** ROUNDS is left in
    them. One point is the mean, and has the only weight there is.
    """
    points, weights = start, _even(len(start))
    if not learn_weights or len(start) == 1:
        return _moved(points, weights, features), weights
    # The released code ends where two rounds learn the same weights. Its last steps' hardly ever are; the best ones may
    # be the even ones twice, while the points are still far off.
    for _ in range(ROUNDS):
        weights = _learned(points, features)
        points = (1 - SHARE) * points + SHARE * _moved(points, weights, features)
    return points, weights


def _moved(points: np.ndarray, weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The free-support barycenter of one measure with these weights, from these points on."""
    return pot().lp.free_support_barycenter([features], [_even(len(features))], points, b=weights)


def _learned(points: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Weights of fixed points by which they are closest to the features: mirror descent on the simplex.

    The gradient of the transport cost is the dual potential of the points; the cost is the squared distance over its
    maximum (Cuturi and Doucet, 2014, algorithm 1). At this step size the weights swing where points lie far apart: the
    best of all steps is taken, where the released code takes the last.
    """
    ot = pot()
    cost = ot.dist(points, features)
    cost, even, weights = cost / cost.max(), _even(len(features)), _even(len(points))
    best, least = weights, np.inf
    for _ in range(STEPS + 1):
        found = ot.emd(weights, even, cost, log=True)[1]
        if found["cost"] < least:
            best, least = weights, found["cost"]
        weights = weights * np.exp(-STEP_SIZE * (found["u"] - found["u"].min()))
        weights = np.maximum(weights / weights.sum(), LEAST / len(points))
        weights /= weights.sum()
    return best


def _even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)
