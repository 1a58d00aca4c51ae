"""DD-Ranking's scores (arXiv 2505.13300, section 3): what a set is worth beyond random images, labels and augmentation."""

from __future__ import annotations

import math


def label_robust(syn_any: float, random_any: float, full_hard: float, syn_hard: float, weight: float = 0.5) -> float:
    """LRS, from 0 to 1, of accuracies as fractions.

    `syn_any` and `random_any` are the distilled and the random images under the same labels, whatever these are;
    `full_hard` and `syn_hard` the whole data set and the distilled images with hard labels.
    """
    return _to_unit(weight * (syn_any - random_any) - (1 - weight) * (full_hard - syn_hard))


def augmentation_robust(syn: float, random: float, syn_plain: float, random_plain: float, weight: float = 0.5) -> float:
    """ARS, from 0 to 1, of accuracies as fractions: with the protocol's augmentation, and without any."""
    return _to_unit(weight * (syn - random) + (1 - weight) * (syn_plain - random_plain))


def _to_unit(difference: float) -> float:
    """-1 to 0, 1 to 1, exponentially between them."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))
