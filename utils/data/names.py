"""Many names in little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Iterable

import numpy as np


class Names(Sequence):
    """A sequence of names in one block of bytes; slices are lists.

    Of a list, forked workers copy what they read: each name counts its references, where it lies.
    """

    def __init__(self, names: Iterable[str]):
        encoded = [name.encode() for name in names]
        self._text = b"".join(encoded)
        self._starts = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int | slice) -> str | list[str]:
        found = range(len(self))[index]
        if isinstance(found, range):
            return [self[number] for number in found]
        return self._text[self._starts[found] : self._starts[found + 1]].decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (list, Names)) and list(self) == list(other)
