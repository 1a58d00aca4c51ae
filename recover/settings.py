"""The settings of a synthesis: the flags that a method names, with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Mapping


@dataclass(frozen=True)
class Settings:
    """One recipe of recover/methods.py, changed by what was given."""

    objective: str  # of recover/objectives
    iterations: int  # ITR
    round_iterations: int  # ROUND_ITR
    lr: float  # of the pixels, normalised
    r_bn: float  # weight of the BatchNorm statistics
    first_bn_multiplier: float
    combine: str  # several teachers: mean or turn
    jitter: int  # pixels
    curriculum: str
    milestone: float
    min_crop: float
    init: str  # images or noise
    batch_by: str  # class or index
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the method's objective knows

    @classmethod
    def names(cls) -> set[str]:
        """The settings that have a flag of their own."""
        return {entry.name for entry in fields(cls)} - {"options"}

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Settings:
        """The settings of a recipe. What has no field here is an option of the recipe's objective."""
        names = cls.names()
        return cls(
            **{name: value for name, value in recipe.items() if name in names},
            options={name: value for name, value in recipe.items() if name not in names},
        )

    @property
    def schedule(self) -> dict[str, Any]:
        """What EarlyLate takes, but for the images per class."""
        names = ("iterations", "round_iterations", "lr", "curriculum", "milestone", "min_crop")
        return {name: getattr(self, name) for name in names}

    @property
    def plain(self) -> dict[str, Any]:
        """The recipe again."""
        values = {name: getattr(self, name) for name in sorted(self.names())}
        return {**values, **self.options}
