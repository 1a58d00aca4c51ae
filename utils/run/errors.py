"""The error that a user can correct."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, or a machine that lacks something. Shown as one line; the process ends with exit code 2."""
