"""The error that a user can correct, what other errors say in a line, and how a line lists names."""

from __future__ import annotations

from typing import Sequence


class UserError(Exception):
    """Bad input, or a machine that lacks something. Shown as one line; the process ends with exit code 2."""


def listed(names: Sequence[str], most: int) -> str:
    """At most so many of the names, and how many there are more: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(error: BaseException) -> str:
    """All that an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
