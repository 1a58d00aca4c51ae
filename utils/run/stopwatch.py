"""How long work takes, piece by piece."""

from __future__ import annotations

import time


class Stopwatch:
    """A lap has the seconds since the one before it, the first one those since the start: none is lost or doubled."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
