"""Several teachers that work together."""

from __future__ import annotations

from dataclasses import replace
from typing import Sequence

from utils.nets.class_order import SORTED
from utils.nets.teacher import Teacher
from utils.run.errors import UserError


def agreed(teachers: Sequence[Teacher], paths: Sequence[str | None]) -> list[Teacher]:
    """The teachers, where they agree on their classes and input size; one without names gets those of the others.

    Raises UserError, naming the file among `paths`, where one differs from the first.
    """
    teachers = _with_names(teachers)
    _require_same(teachers, paths)
    return teachers


def _with_names(teachers: Sequence[Teacher]) -> list[Teacher]:
    """The teachers; one that names no class gets another's names where these are in the order that it is taken in."""
    names = next((teacher.geometry.classes for teacher in teachers if teacher.geometry.classes), None)
    if names is None or list(names) != sorted(names):
        return list(teachers)
    return [
        replace(teacher, geometry=replace(teacher.geometry, classes=names))
        if teacher.order == SORTED and teacher.geometry.num_classes == len(names)
        else teacher
        for teacher in teachers
    ]


def _require_same(teachers: Sequence[Teacher], paths: Sequence[str]) -> None:
    first = teachers[0].geometry
    for teacher, path in zip(teachers[1:], paths[1:]):
        for name in ("num_classes", "input_size", "classes"):
            own, other = getattr(teacher.geometry, name), getattr(first, name)
            if own == other:
                continue
            what = "the names or the order of its classes" if name == "classes" else f"{name} ({own}, not {other})"
            if None in (own, other):
                what += (
                    f" (one of them names none, and is taken in {SORTED}, which is not the other's; --classes FILE "
                    "with the other's order says that it is its own, too)"
                )
            raise UserError(
                f"{path}: differs from {paths[0]} in {what}; teachers that work together agree on their classes and "
                "input size"
            )
