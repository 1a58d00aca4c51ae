"""EarlyLate: which images are optimised when, how fast, and on which crops (DELT, section 3.3; CDA for the crops)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from utils.run.errors import UserError

CURRICULA = ("cosine", "linear", "step")
LR_SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class EarlyLate:
    """The schedule of `ipc` images of a class, in the order of their positions.

    The images are cut into as many groups as there are rounds, as even as can be, the first groups taking the
    remainder. A group joins at the start of its round and stays to the end: early ones are optimised long, late ones
    short. Raises UserError where the rounds do not divide the iterations.
    """

    ipc: int
    iterations: int  # ITR, of the images that start first
    round_iterations: int  # ROUND_ITR; 0: all start at once
    lr: float
    lr_schedule: str  # how it falls, if it does
    curriculum: str  # how the crop shrinks
    milestone: float  # share of the iterations until the crop is smallest
    min_crop: float  # smallest share of the image in a crop

    def __post_init__(self) -> None:
        if self.round_iterations and self.iterations % self.round_iterations:
            below = self.iterations - self.iterations % self.round_iterations
            near = [str(n) for n in (below, below + self.round_iterations) if n]
            raise UserError(
                f"--iterations {self.iterations} is not a multiple of --round-iterations {self.round_iterations}; "
                f"{' or '.join(near)} iterations would be"
            )

    @property
    def rounds(self) -> int:
        """In which images begin: no more than a class has images."""
        return min(self.iterations // self.round_iterations, self.ipc) if self.round_iterations else 1

    @cached_property
    def round_of(self) -> list[int]:
        """For each position the round in which its image joins, from 0."""
        size, rest = divmod(self.ipc, self.rounds)
        return [group for group in range(self.rounds) for _ in range(size + (group < rest))]

    @cached_property
    def start_of(self) -> list[int]:
        """For each position the first iteration of its image."""
        return [group * self.round_iterations for group in self.round_of]

    @cached_property
    def updates_of(self) -> list[int]:
        """For each position how often its image is updated."""
        return [self.iterations - start for start in self.start_of]

    def learning_rate(self, iteration: int) -> float:
        """One cosine from `lr` to 0 over the whole run, whenever an image joined it; or always `lr`."""
        if self.lr_schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * iteration / self.iterations))

    def min_scale(self, iteration: int) -> float:
        """The crop's smallest share of the image: from 1 to `min_crop` up to the milestone, then constant."""
        length = self.milestone * self.iterations
        done = 1.0 if iteration >= length else iteration / length
        if self.curriculum == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * done))
        elif self.curriculum == "linear":
            left = 1 - done
        else:
            left = float(done < 1)
        return self.min_crop + (1 - self.min_crop) * left
