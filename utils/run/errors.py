"""The error that a user can correct, and how its line lists names."""

from __future__ import annotations

from typing import Sequence


class UserError(Exception):
    """Bad input, or a machine that lacks something. Shown as one line; the process ends with exit code 2."""


def listed(names: Sequence[str], most: int) -> str:
    """At most so many of the names, and how many there are more: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
