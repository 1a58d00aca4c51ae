"""Text that Markdown shows as it is, and tables of it."""

from __future__ import annotations

import re
from typing import Iterable, Sequence

# What Markdown reads as more than text within a cell. Entities stand where not all of its dialects take a backslash.
MARKS = re.compile(r"[\\`*_\[\]|]")
ENTITIES = re.compile(r"[&<>~$]|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escaped(text: str) -> str:
    """`text` as Markdown that shows it as it is, on one line: no mark, link, HTML or border of a cell is left in it."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    line = ENTITIES.sub(lambda found: f"&#{ord(found[0])};", line)
    return MARKS.sub(lambda found: "\\" + found[0], line)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table that shows all texts as they are."""
    lines = [_line(head), "|" + "---|" * len(head), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(escaped(str(cell)) for cell in cells) + " |"
