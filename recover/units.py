"""Work units: which images are optimised together."""

from __future__ import annotations

from dataclasses import dataclass

from utils.run.errors import UserError

Member = tuple[int, int]  # an image: its class's label and its position in the class


@dataclass(frozen=True)
class Unit:
    """A unit depends on nothing but its members, the arguments and its random stream."""

    number: int
    members: tuple[Member, ...]


def split(num_classes: int, ipc: int, batch_size: int, batch_by: str) -> list[Unit]:
    """All units. By class: whole classes, as many as fill a batch (DELT). By index: one position of many classes.

    Raises UserError where a batch cannot hold one class.
    """
    if batch_by == "class":
        if batch_size < ipc:
            raise UserError(
                f"--batch-size {batch_size} is smaller than one class's {ipc} images; give {ipc} or more, or "
                "--batch-by index"
            )
        width = batch_size // ipc
        groups = [
            [(label, position) for label in range(start, min(start + width, num_classes)) for position in range(ipc)]
            for start in range(0, num_classes, width)
        ]
    else:
        groups = [
            [(label, position) for label in range(start, min(start + batch_size, num_classes))]
            for position in range(ipc)
            for start in range(0, num_classes, batch_size)
        ]
    return [Unit(number, tuple(members)) for number, members in enumerate(groups)]
