"""Coresets: images that together stand for their class, by the teacher's features and without scores.

The baselines that a distilled set has to beat at the same number of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def herding(features: torch.Tensor, count: int) -> list[int]:
    """Greedily keep the mean of the chosen as close as can be to the mean of all (Welling, 2009; iCaRL, section 3.2).

    `features` (n, D) are scaled to length 1 as in iCaRL. Returns `count` indices; equally good ones by index.
    """
    features = features.double()
    features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
    target, total = features.mean(0), features.new_zeros(features.shape[1])
    free = features.new_ones(len(features)).bool()
    chosen = []
    for number in range(1, count + 1):
        distance = (target - (total + features) / number).norm(dim=1)
        best = int(distance.where(free, float("inf")).argmin())
        free[best] = False
        total += features[best]
        chosen.append(best)
    return chosen


def k_center(features: torch.Tensor, count: int) -> list[int]:
    """Greedily take the image farthest from all that are taken (Sener and Savarese, 2018, algorithm 1).

    The first one is the closest to the mean. `features` (n, D), Euclidean distance. Returns `count` indices; equally
    good ones by index.
    """
    features = features.double()
    chosen = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = (features - features[chosen[0]]).norm(dim=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1  # taken, though it may have a twin at distance 0
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum((features - features[chosen[-1]]).norm(dim=1))
    return chosen
