"""Registries: named sets of settings, and names that bash scripts can ask for instead of repeating them."""

from __future__ import annotations

import sys
from typing import Any, Iterable, Mapping, Sequence

from utils.run import boundary
from utils.run.errors import UserError


def with_changes(
    registry: Mapping[str, Mapping[str, Any]], name: str, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The settings `name` of the registry with what was given in their place, and what to call them.

    It is `name` itself, another entry's name where the settings are that one's, or `name` with what was changed. None
    stands for what was not given.
    """
    given = {setting: value for setting, value in given.items() if value is not None}
    settings = {**registry[name], **given}
    same = [other for other in (name, *registry) if registry[other] == settings]
    changed = [f"{setting}={value}" for setting, value in given.items() if registry[name][setting] != value]
    return same[0] if same else " ".join([name, *changed]), settings


def run(what: str, names: Iterable[str]) -> None:
    """`main` of the command line's words, as the whole program.

    For modules that import neither torch nor anything else that is slow: a script asks several of them.
    """
    sys.exit(boundary.run(lambda: main(what, names, sys.argv[1:])))


def main(what: str, names: Iterable[str], asked: Sequence[str]) -> None:
    """Print the names, one a line, if none is asked for. Raises UserError if one of those that are is unknown."""
    known = list(names)
    if not asked:
        print("\n".join(known))
    for name in asked:
        if name not in known:
            raise UserError(f"{what} '{name}' is not known; known: {', '.join(known)}")
