"""How long ranks that train together wait for one another.

A rank that has died is noticed by its connection or by the launcher, at once. What is left are ranks that hang,
machines that lost their power or network, and ranks that wait for each other by a fault. So a wait has a limit, and
work that one rank does while others wait for it gives signs of life: the limit counts from the last of them.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import time

import torch
import torch.distributed as dist

from utils.run.errors import UserError

MINUTES = 30.0
SIGN_SECONDS = 2.0  # between two signs of life
LONGEST_PAUSE = 0.25  # seconds between two looks


class _Waiting:
    """What is known of the other ranks; nothing outside of a process group."""

    def __init__(self) -> None:
        self.minutes, self.store, self.meetings, self.signed = MINUTES, None, itertools.count(), 0.0


_STATE = _Waiting()


def limit(minutes: float) -> datetime.timedelta:
    _STATE.minutes = minutes
    return datetime.timedelta(minutes=minutes)


def start(minutes: float) -> None:
    """The process group is there, and has this limit."""
    _STATE.minutes, _STATE.meetings, _STATE.signed = minutes, itertools.count(), 0.0
    _STATE.store = dist.PrefixStore("waiting", _own_connection(dist.distributed_c10d._get_default_store()))
    # NCCL ends a process that has waited too long, without a word. Between the CPUs it is an error that can be said.
    if dist.get_backend(None) != "gloo":
        with contextlib.suppress(AttributeError, RuntimeError):
            backend = dist.group.WORLD._get_backend(torch.device("cuda"))
            backend._set_default_timeout(limit(minutes) + datetime.timedelta(minutes=5))


def stop() -> None:
    meet()
    _STATE.store = None


def _own_connection(store: dist.Store) -> dist.Store:
    """Besides the group's, in which NCCL may wait for a long time. PyTorch 2.5 has none."""
    return store.clone() if hasattr(store, "clone") else store


def sign() -> None:
    """Show that this rank works."""
    now = time.monotonic()
    if _STATE.store is not None and now - _STATE.signed > SIGN_SECONDS:
        _STATE.signed = now
        _STATE.store.set(f"signs of {dist.get_rank()}", str(now))


def meet() -> None:
    """Wait for all ranks. Raises UserError where one has neither come nor given a sign for the limit."""
    store, number = _STATE.store, next(_STATE.meetings)
    missing, signs = list(range(dist.get_world_size())), None
    store.set(_arrival(number, dist.get_rank()), "here")
    heard, pause = time.monotonic(), 0.001
    while missing := [rank for rank in missing if not store.check([_arrival(number, rank)])]:
        found = [_signs(rank) for rank in missing]
        if found != signs:
            heard, signs = time.monotonic(), found
        if time.monotonic() - heard > 60 * _STATE.minutes:
            raise UserError(expired(f"rank {', '.join(map(str, missing))}"))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    if number:
        store.delete_key(_arrival(number - 1, dist.get_rank()))  # all have come here, so nobody looks at it any more
    dist.all_reduce(torch.zeros(1))  # nobody asks the store after it, which may end with its rank


def expired(who: str = "another rank") -> str:
    """What to say, and to do, where `who` was waited for in vain."""
    return (
        f"{who} has given no sign of life for {_STATE.minutes:g} minutes (--wait): its machine or its disk hangs, or "
        "it is slow; finished work is on disk, and the same command resumes; give a higher --wait if it is slow"
    )


def _arrival(meeting: int, rank: int) -> str:
    return f"meeting {meeting} of {rank}"


def _signs(rank: int) -> bytes:
    name = f"signs of {rank}"
    return _STATE.store.get(name) if _STATE.store.check([name]) else b""
