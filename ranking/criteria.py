"""Criteria: which images of a class are selected, and in which order. One registry, CRITERIA.

A new criterion is a function and an entry. Run as a module, it prints the names; with `--made FOLDER` by which
flags the selection there was made.
"""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from ranking import coreset
from utils.data.manifest import Manifest, images_of
from utils.run import boundary, registry
from utils.run.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Candidates:
    """The images of one class: n paths, and what the criterion needs of them."""

    paths: list[str]
    stream: tuple | None = None  # of a criterion that draws: names the random stream that belongs to the class
    scores: list[float] | None = None  # of each image, the teacher's probability of its class
    features: torch.Tensor | None = None  # (n, D), the teacher's penultimate features


@dataclass(frozen=True)
class Criterion:
    """`choose(candidates, ipc)` gives the indices of the selected images, position 0 first."""

    choose: Callable[[Candidates, int], list[int]]
    needs: str  # "scores", "features", "both", or "nothing" but the names
    draws: bool = False  # whether the seed decides, too; without it there is no `stream`

    @property
    def by_features(self) -> bool:
        return self.needs in ("features", "both")


def medium(images: Candidates, ipc: int) -> list[int]:
    """Around the median in ascending order of scores: a place, then its neighbours in turn, after, before, after, ...

    It begins at place ceil(n / 2), counted from 0, as the released code does (DELT, section 3.2).
    """
    ascending, n = _ascending(images), len(images.paths)
    middle = (n + 1) // 2
    steps = [middle] + [middle + sign * k for k in range(1, n + 1) for sign in (1, -1)]
    return [ascending[i] for i in steps if 0 <= i < n][:ipc]


def top(images: Candidates, ipc: int) -> list[int]:
    """The highest scores: the easiest images."""
    return sorted(range(len(images.paths)), key=lambda i: (-images.scores[i], images.paths[i]))[:ipc]


def lowest(images: Candidates, ipc: int) -> list[int]:
    """The lowest scores: the hardest images."""
    return _ascending(images)[:ipc]


def at_random(images: Candidates, ipc: int) -> list[int]:
    import torch  # here, so that the names can be asked for without waiting for torch

    from utils.run.seeds import generator

    by_path = sorted(range(len(images.paths)), key=lambda i: images.paths[i])
    order = torch.randperm(len(by_path), generator=generator(*images.stream)).tolist()
    return [by_path[i] for i in order[:ipc]]


def easy_herding(images: Candidates, ipc: int) -> list[int]:
    """Herding of the half that the teacher finds easier, or of as many as are needed (this project's).

    What stands for a class with few images should show it clearly: herding of all takes its odd images, too.
    """
    easier = sorted(top(images, max(ipc, math.ceil(len(images.paths) / 2))))
    return [easier[index] for index in coreset.herding(images.features[easier], ipc)]


def _ascending(images: Candidates) -> list[int]:
    return sorted(range(len(images.paths)), key=lambda i: (images.scores[i], images.paths[i]))


CRITERIA = {
    "medium": Criterion(medium, "scores"),
    "top": Criterion(top, "scores"),
    "min": Criterion(lowest, "scores"),
    "random": Criterion(at_random, "nothing", draws=True),
    "herding": Criterion(lambda images, ipc: coreset.herding(images.features, ipc), "features"),
    "easy-herding": Criterion(easy_herding, "both"),
    "k-center": Criterion(lambda images, ipc: coreset.k_center(images.features, ipc), "features"),
}


def made(folder: str) -> str:
    """The flags by which the selection in `folder` was made; empty where nothing says it."""
    settings: dict = {}
    with contextlib.suppress(UserError):  # validate says what is wrong with the manifest
        settings = Manifest.of(images_of(folder)).settings
    if settings.get("criterion") not in list(CRITERIA):  # whatever it is
        return ""
    numbers = {name: settings.get(name) for name in ("candidates", "crops", "tiles")}
    flags = [f"--{name} {value}" for name, value in numbers.items() if type(value) is int and value]
    return " ".join([f"--criterion {settings['criterion']}", *flags])


def main() -> None:
    parser = boundary.Parser("ranking.criteria", "The criteria, one a line.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="ends with exit code 2 if one is not known")
    parser.add_argument("--made", metavar="FOLDER", help="by which flags the selection there was made; empty: unknown")
    args = parser.parse_args()
    if args.made is not None:
        print(made(args.made))
    else:
        registry.main("criterion", CRITERIA, args.names)


if __name__ == "__main__":
    sys.exit(boundary.run(main))
