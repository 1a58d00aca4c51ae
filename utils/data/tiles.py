"""Tiles: the parts of real images that a collage is put together of, and what its manifest says of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional

from utils.data.images import resize_whole
from utils.data.manifest import MANIFEST, Manifest
from utils.run.errors import UserError

Box = tuple[int, int, int, int]  # top, left, height and width in pixels


@dataclass(frozen=True)
class Tile:
    """The `box` of the image at `path`, relative to its ImageFolder; all of the image where it is None."""

    path: str
    box: Box | None = None
    sha256: str | None = None  # of the file

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "box": list(self.box) if self.box else None}


def cut(image: Image.Image, box: Box | None, size: int) -> Image.Image:
    """The part of an RGB image as one of `size` pixels a side; of the whole the square in the middle."""
    return functional.resized_crop(image, *box, [size, size]) if box else resize_whole(size)(image)


def edges(size: int, side: int) -> list[int]:
    """The pixels of each tile along a side of a collage of `size`; those left over belong to the first ones."""
    return [size // side + (number < size % side) for number in range(side)]


def of_collages(folder: str | Path) -> tuple[Path, dict[str, list[Tile]]]:
    """Where the originals of the collages in `folder` lie, and each collage's tiles by its path, by their manifest.

    A selection of whole images has one tile an image. Raises UserError where the manifest does not say it.
    """
    record = Manifest.of(folder).content
    try:
        found = {
            str(path): [_tile(entry) for entry in entries] for path, entries in dict(record.get("tiles") or {}).items()
        }
        train_dir = Path(record["train_dir"])
        if not found or not all(found.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder}: its {MANIFEST} names no tiles; make the collages with python -m ranking --tiles"
        ) from None
    return train_dir, found


def is_box(value: Any) -> bool:
    """Whether JSON has a box there."""
    whole = isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)
    return whole and min(value) >= 0 and min(value[2:]) > 0


def _tile(entry: dict[str, Any]) -> Tile:
    """Raises KeyError, TypeError or ValueError where it is none, or lies outside of the folder."""
    path, box, sha256 = entry["path"], entry["box"], entry.get("sha256")
    if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError
    if not (box is None or is_box(box)) or not isinstance(sha256, (str, type(None))):
        raise ValueError
    return Tile(path, tuple(box) if box else None, sha256)
