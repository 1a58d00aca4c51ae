"""The state of long work on disk, and the signals that end it: the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import torch

from utils import ranks
from utils.files import digest, remove_leftovers, replacing

GRACE = 8  # seconds that a signal waits for the end of a step, which may be compiling


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception, so that nothing on the way takes it for an error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Signals:
    """SIGINT and SIGTERM: at once where no state would be lost, else as soon as the state is on disk."""

    def __init__(self) -> None:
        self.process, self.waiting, self.received = 0, False, 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        self.process, self.waiting, self.received = os.getpid(), False, 0
        before = {number: signal.signal(number, self._arrived) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: self.end())
        try:
            yield
        finally:
            signal.alarm(0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _arrived(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            return  # a worker that reads images; it ends with its parent
        again, self.received = bool(self.received), number
        if again or not self.waiting:
            self.end()
        signal.alarm(GRACE)

    def end(self) -> None:
        """Raises Stopped if a signal has come."""
        signal.alarm(0)
        if self.received:
            raise Stopped(self.received)


SIGNALS = _Signals()


class State:
    """One file that holds how far one piece of work has come. It appears whole, and says by its digest that it is."""

    def __init__(self, path: str | Path, identity: dict, minutes: float = 5.0):
        """`identity` names the work: a file of other work is no state of this one. Written every `minutes`."""
        self.path, self.identity, self.every = Path(path), digest(identity), 60 * minutes
        self.begun = self.written = time.monotonic()
        self.before = 0.0

    @property
    def seconds(self) -> float:
        """That the work took so far, in all processes that went on with it."""
        return self.before + time.monotonic() - self.begun

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None if nothing was, or by other work. A damaged file is named and left aside."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        payload = content[65:]
        if content[:65] != _seal(payload):
            print(f"{self.path}: damaged, and not used; this piece of work starts again")
            return None
        saved = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if saved["identity"] != self.identity:
            return None
        self.before = saved["seconds"]
        return saved["content"]

    def restore(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        """Bring `parts` (name -> what has load_state_dict) to what was saved by `snapshot`; return the rest of it."""
        if saved := self.load():
            for name, part in parts.items():
                part.load_state_dict(saved.pop(name))
        return saved

    def save(self, content: dict[str, Any]) -> None:
        """Tensors and plain values only."""
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "seconds": self.seconds, "content": content}, buffer)
        payload = buffer.getvalue()
        with replacing(self.path) as temporary:
            temporary.write_bytes(_seal(payload) + payload)
        self.written = time.monotonic()

    def keep(self, content: Callable[[], dict[str, Any]]) -> None:
        """To be called after each step: saves `content()` when it is time. Raises Stopped, after saving, at a signal."""
        asked, late = self._agreed(SIGNALS.received, time.monotonic() - self.written > self.every)
        if asked or late:
            self.save(content())
        if asked:
            raise Stopped(asked)

    def _agreed(self, *values: int) -> list[int]:
        return list(values)

    def __enter__(self) -> "State":
        SIGNALS.waiting = True
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        SIGNALS.waiting = False
        if kind is None:
            self.remove()
            SIGNALS.end()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir():
            remove_leftovers(self.path)


class JointState(State):
    """The state of work that all ranks do together: they save and stop after the same step, and rank 0 writes."""

    def save(self, content: dict[str, Any]) -> None:
        if ranks.rank() == 0:
            super().save(content)
        self.written = time.monotonic()

    def remove(self) -> None:
        if ranks.rank() == 0:  # which has written the result by now
            super().remove()

    def _agreed(self, *values: int) -> list[int]:
        return ranks.highest(*values)


def _seal(payload: bytes) -> bytes:
    """What stands before a payload and says that it is whole."""
    return hashlib.sha256(payload).hexdigest().encode() + b"\n"


def snapshot(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


class NoState(State):
    """For work that is short, or that nobody will go on with."""

    def __init__(self) -> None:
        super().__init__(os.devnull, {})

    def load(self) -> None:
        return None

    def keep(self, content: Callable[[], dict[str, Any]]) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        SIGNALS.waiting = False
