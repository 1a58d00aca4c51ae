"""Parts of the scoring on disk: each process scores its own, and who finds all of them there puts them together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from utils.ranks import rank_and_world
from utils.state import State


class Parts:
    """Numbered parts of work, each in a file that says by its digest that it is whole; in a hidden folder beside `output`.

    A part depends on nothing but the `identity` of the work and its number, so the outcome does not depend on how many
    processes there were, nor on how often they were killed.
    """

    def __init__(self, output: str | Path, identity: dict):
        self.folder, self.identity = Path(output).with_name(f".{Path(output).name}.parts"), identity

    def missing(self, count: int) -> list[int]:
        """Those of this rank, of `count` in all, that are not on disk."""
        rank, world = rank_and_world()
        return [number for number in range(count)[rank::world] if self._part(number).load() is None]

    def save(self, number: int, content: dict[str, Any]) -> None:
        """Tensors and plain values only."""
        self._part(number).save(content)

    def all(self, count: int) -> list[dict[str, Any]] | None:
        """The contents of all parts in order; None if some are not there yet."""
        found = []
        for number in range(count):
            content = self._part(number).load()
            if content is None:
                return None
            found.append(content)
        return found

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> State:
        return State(self.folder / f"{number:06d}", self.identity)
