"""The state of long work on disk: the same command resumes from it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any, Callable

import torch

from utils.run import distributed
from utils.run.errors import UserError
from utils.run.files import differences, digest, remove_leftovers, write_bytes
from utils.run.signals import SIGNALS, Stopped


class State:
    """One file that holds how far one piece of work has come. It appears whole, and carries its own digest."""

    def __init__(self, path: str | Path, identity: dict, minutes: float = 5.0):
        """`identity` names the work: a file of other work is no state of this one. Written every `minutes`."""
        self.path, self.identity, self.interval = Path(path), digest(identity), 60 * minutes
        self.settings = json.loads(json.dumps(identity))  # to say what differs
        self.started = self.saved = time.monotonic()
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """That the work took so far, in all processes that worked on it."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings of the work that was interrupted here, this or other work; empty where nothing says them."""
        payload = self._payload()
        return _unpacked(payload).get("settings", {}) if payload else {}

    def require_own(self) -> None:
        """Raises UserError where other work was interrupted here: it could not be resumed once this one is saved.

        Of work that several ranks do together rank 0 alone asks.
        """
        if not (payload := self._payload()):
            return
        saved = _unpacked(payload)
        if saved["identity"] == self.identity:
            return
        if "settings" not in saved:
            print(f"{self.path}: another version's, of other settings, and not used; this piece of work starts again")
            return
        raise UserError(
            f"{self.path}: holds an interrupted run of other settings ({differences(saved['settings'], self.settings)})"
            "; give these again to resume it, choose another --output, or give --overwrite"
        )

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None if nothing was, or by other work. A damaged file is named and not used."""
        payload = self._read()
        if not payload:
            return None
        saved = _unpacked(payload)
        if saved["identity"] != self.identity:
            return None
        self.seconds_before = saved["seconds"]
        return saved["content"]

    def _read(self) -> bytes:
        """What is in the file, without its checksum; empty where there is none, or it is damaged."""
        payload = self._payload()
        if payload is None:
            print(f"{self.path}: damaged, and not used; this piece of work starts again")
        return payload or b""

    def _payload(self) -> bytes | None:
        """What is in the file, without its checksum; empty where there is none, None where it is damaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        payload = content[65:]
        return payload if content[:65] == _checksum(payload) else None

    def restore(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        """Load `parts` (name -> what has load_state_dict) from what `state_dicts` gave; return the rest of it."""
        if saved := self.load():
            for name, part in parts.items():
                part.load_state_dict(saved.pop(name))
        return saved

    def save(self, content: dict[str, Any]) -> None:
        """Tensors and plain values only."""
        buffer = io.BytesIO()
        saved = {"identity": self.identity, "settings": self.settings, "seconds": self.seconds, "content": content}
        torch.save(saved, buffer)
        payload = buffer.getbuffer()  # no copy: a state may be large
        write_bytes(self.path, _checksum(payload), payload)
        self.saved = time.monotonic()

    def save_if_due(self, content: Callable[[], dict[str, Any]]) -> None:
        """To be called after each step: saves `content()` when it is due. Raises Stopped, after saving, at a signal.

        No signal cuts off what is being saved.
        """
        stop, due = self._agree(SIGNALS.received, time.monotonic() - self.saved > self.interval)
        if stop or due:
            with SIGNALS.held():
                self.save(content())
                if stop:
                    self._await_saved()
                    raise Stopped(stop)

    def _agree(self, *values: int) -> list[int]:
        return list(values)

    def _await_saved(self) -> None:
        """Until what was to be saved is on disk, whoever writes it."""

    def __enter__(self) -> "State":
        SIGNALS.saving = True
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        SIGNALS.saving = False
        if kind is None:
            self.remove()
            SIGNALS.stop_if_received()

    def remove(self) -> None:
        """Once the result is on disk. Its process may die before: whoever finds the result there does so, too."""
        remove_leftovers(self.path)
        self.path.unlink(missing_ok=True)


class JointState(State):
    """The state of work that all ranks do together: they save and stop after the same step.

    Rank 0 alone reads and writes the file, and tells the others what is in it.
    """

    def _read(self) -> bytes:
        return distributed.broadcast_bytes(super()._read)

    @property
    def seconds(self) -> float:
        """That the work took so far, the seconds of all ranks together."""
        return self.seconds_before + (time.monotonic() - self.started) * distributed.get_world_size()

    def save(self, content: dict[str, Any]) -> None:
        if distributed.get_rank() == 0:
            super().save(content)
        self.saved = time.monotonic()

    def remove(self) -> None:
        if distributed.get_rank() == 0:  # which has written the result by now
            super().remove()

    def _agree(self, *values: int) -> list[int]:
        return distributed.all_reduce_max(*values)

    def _await_saved(self) -> None:
        distributed.barrier()  # or the launcher would end rank 0, as soon as another one has ended


class NoState(State):
    """For work that is short, or that nobody will resume."""

    def __init__(self) -> None:
        super().__init__(os.devnull, {})

    def load(self) -> None:
        return None

    def save_if_due(self, content: Callable[[], dict[str, Any]]) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        SIGNALS.saving = False


def _checksum(payload: bytes | memoryview) -> bytes:
    """What stands before a payload and shows that it is whole."""
    return hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _unpacked(payload: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def state_dicts(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}
