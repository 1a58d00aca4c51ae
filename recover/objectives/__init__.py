"""Objectives: what synthetic images minimise. One file a family, one entry in OBJECTIVES.

An entry makes the objective from the teachers (their networks are its own to change) and the settings of the run.
"""

from __future__ import annotations

from typing import Callable, Sequence

from recover.objectives import batchnorm, features, statistics, wasserstein
from recover.objectives.base import Objective
from recover.settings import Settings
from utils.nets.teacher import Teacher

OBJECTIVES: dict[str, Callable[[Sequence[Teacher], Settings], Objective]] = {
    "batchnorm": batchnorm.build,
    "features": features.build,
    "statistics": statistics.build,
    "wasserstein": wasserstein.build,
}
