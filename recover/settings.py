"""The settings of a synthesis: the flags that a method names, with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Mapping

# No part of a recipe.
APART = ("options", "statistics")


@dataclass(frozen=True)
class Settings:
    """One recipe of recover/methods.py, changed by what was given."""

    objective: str  # of recover/objectives
    iterations: int  # ITR
    round_iterations: int  # ROUND_ITR
    optimizer: str  # adam or adamw
    lr: float  # of the pixels, normalised
    weight_decay: float
    lr_schedule: str  # cosine or constant
    learn: str  # image or difference: what is added to the start, zero at first
    clamp: bool  # to valid pixels, after each step
    r_bn: float  # weight of the BatchNorm statistics
    first_bn_multiplier: float
    combine: str  # several teachers: mean or turn
    crop: str  # resized, padded or none
    curriculum: str  # of resized crops
    milestone: float
    min_crop: float
    flip: bool
    jitter: int  # pixels, the largest roll
    jitter_low: int | None  # the smallest; None: -jitter
    stages: int  # of resolutions
    stage_sizes: tuple[float, ...]  # of the stages in turn, as shares of the input size
    blend: float  # share of the starting image that each stage but the first begins with
    init: str  # images or noise
    batch_by: str  # class or index
    batch_size: int  # images optimised together where --batch-size is not given; 0: all
    statistics: tuple[str, ...] = ()  # files of squeeze.statistics, one for each teacher
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the method's objective knows

    @classmethod
    def names(cls) -> set[str]:
        """The settings that a recipe has, but for its objective's own."""
        return {entry.name for entry in fields(cls)} - set(APART)

    @classmethod
    def of(cls, recipe: Mapping[str, Any], statistics: tuple[str, ...] = ()) -> Settings:
        """The settings of a recipe. What has no field here is an option of the recipe's objective."""
        names = cls.names()
        return cls(
            **{name: value for name, value in recipe.items() if name in names},
            statistics=statistics,
            options={name: value for name, value in recipe.items() if name not in names},
        )

    @property
    def schedule(self) -> dict[str, Any]:
        """What EarlyLate takes, but for the images per class."""
        names = ("iterations", "round_iterations", "lr", "lr_schedule", "curriculum", "milestone", "min_crop")
        return {name: getattr(self, name) for name in names}

    @property
    def plain(self) -> dict[str, Any]:
        """The recipe again, as JSON has it. Of the files of statistics the objective knows the digests."""
        values = {name: getattr(self, name) for name in sorted(self.names())}
        return {**values, "stage_sizes": list(self.stage_sizes), **self.options}
