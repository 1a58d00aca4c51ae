"""Registries: named sets of settings, and names that bash scripts can ask for instead of repeating them."""

from __future__ import annotations

import sys
from typing import Any, Iterable, Mapping


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


def main(what: str, names: Iterable[str]) -> None:
    """Print the names, one a line; with arguments, end with exit code 2 and one line if one of them is unknown.

    For modules that import neither torch nor anything else that is slow: a script asks several of them.
    """
    known, asked = list(names), sys.argv[1:]
    if not asked:
        print("\n".join(known))
    for name in asked:
        if name not in known:
            sys.stderr.write(f"error: {what} '{name}' is not known; known: {', '.join(known)}\n")
            sys.exit(2)
