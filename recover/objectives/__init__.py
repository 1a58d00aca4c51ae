"""Objectives: what synthetic images minimise. One file a family, one entry in OBJECTIVES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Sequence

from recover.objectives import batchnorm, features, statistics, wasserstein
from recover.objectives.base import Objective
from recover.settings import Settings
from utils.nets.teacher import Teacher

# Flags of recover that nothing but objectives reads.
FLAGS = ("r_bn", "first_bn_multiplier", "combine", "statistics")


@dataclass(frozen=True)
class Entry:
    """One objective, and what it reads of the command line: recover refuses the rest of FLAGS, and other options."""

    build: Callable[[Sequence[Teacher], Settings], Objective]  # the teachers' networks are its own to change
    reads: tuple[str, ...]  # of FLAGS, and options
    by_r_bn: tuple[str, ...] = ()  # of these, what only acts on the terms that r_bn weighs


_NORMS = ("r_bn", "first_bn_multiplier", "combine")

OBJECTIVES: dict[str, Entry] = {
    "batchnorm": Entry(batchnorm.build, _NORMS, ("first_bn_multiplier",)),
    "features": Entry(features.build, ("combine", "augment")),
    "statistics": Entry(
        statistics.build,
        (*_NORMS, "statistics", *statistics.OPTIONS),
        ("first_bn_multiplier", "momentum", "drop", "class_share"),
    ),
    "wasserstein": Entry(wasserstein.build, (*_NORMS, "statistics", "per_class"), ("first_bn_multiplier", "per_class")),
}
