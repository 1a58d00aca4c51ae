"""SIGINT and SIGTERM: they end a stage at once where nothing would be lost, else as soon as its state is on disk."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Iterator

GRACE = 8  # seconds that a signal waits for the end of a step, which may be compiling


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing on the way takes it for an error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Signals:
    """`saving` is true while there is state to be saved, `received` the number of the signal that came."""

    def __init__(self) -> None:
        self.process, self.saving, self.received = 0, False, 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        self.process, self.saving, self.received = os.getpid(), False, 0
        before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: self.stop_if_received())
        try:
            yield
        finally:
            signal.alarm(0)
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

    def _arrived(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            return  # a worker that reads images; it ends with its parent
        again, self.received = bool(self.received), number
        if again or not self.saving:
            self.stop_if_received()
        signal.alarm(GRACE)

    def stop_if_received(self) -> None:
        """Raises Stopped if a signal has come."""
        signal.alarm(0)
        if self.received:
            raise Stopped(self.received)


SIGNALS = _Signals()
