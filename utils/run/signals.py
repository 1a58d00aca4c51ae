"""SIGINT and SIGTERM: they end a stage at once where nothing would be lost, else as soon as its state is on disk."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from typing import Iterator

from utils.run.errors import UserError

GRACE = 8.0  # seconds that a signal waits for the end of a step, which may be compiling
GRACE_VARIABLE = "DELT_GRACE"  # in the environment: other seconds
# Seconds within which further signals are the first one: a scheduler or a terminal signals every process of a job,
# and the launcher passes it on to the ranks.
TOGETHER = 2.0


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing on the way takes it for an error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def grace() -> float:
    """Seconds that a signal waits for the end of a step. Raises UserError where the environment says no number."""
    said = os.environ.get(GRACE_VARIABLE) or str(GRACE)
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{GRACE_VARIABLE}={said}: is not a number of seconds of 0 or more")
    return seconds


class _Signals:
    """`saving` is true while there is state to be saved, `received` the number of the signal that came."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.process, self.saving, self.received = 0, False, 0
        self.grace, self.first = GRACE, 0.0  # seconds, and when the first signal came
        self._holds, self._over = 0, False  # how many blocks hold signals back; whether one was to end at once

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        self._reset()
        self.process, self.grace = os.getpid(), grace()
        before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: self.stop_if_received())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def default(self) -> Iterator[None]:
        """The system's own handling within, which also ends a process that waits inside of a C++ call."""
        before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No signal cuts off what is within, however long it takes; one that was to end the process does so after it.

        For what writes files, and for what ends by itself and looks for signals meanwhile. Other threads than the first
        one are cut off by none.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if not self._holds and self._over:
            self.stop_if_received()

    def _arrived(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            return  # a worker that reads images; it ends with its parent
        again = bool(self.received)
        if again and time.monotonic() - self.first < TOGETHER:
            return
        if not again:
            self.first = time.monotonic()
        self.received = number
        if again or not self.saving or not self.grace:
            self.stop_if_received()
        else:
            signal.setitimer(signal.ITIMER_REAL, self.grace)

    def stop_if_received(self) -> None:
        """Raises Stopped if a signal has come; where signals are held back, later."""
        if self._holds:
            self._over = True
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.received:
            raise Stopped(self.received)


SIGNALS = _Signals()
