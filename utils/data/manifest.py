"""Manifests: what the folder of a selection or of a synthetic set says of itself."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.data.sizes import MAX_SIZE, MIN_SIZE
from utils.run.errors import UserError, listed
from utils.run.files import digest, read_json

MANIFEST = "manifest.json"
SHARED = "share.json"  # the record of a folder for the Hugging Face Hub
IMAGES = "train"  # the part of a shared set's folder that holds its images, and the split that they are
KEEP = "keep"  # of --short-classes

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a folder says of itself; nothing for a folder without a manifest. What is of the wrong kind is not said."""

    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: str | Path) -> Manifest:
        """Raises UserError where it is not readable."""
        path = Path(folder) / MANIFEST
        if not path.exists():
            return cls()
        content = read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a manifest (a JSON object); remove it, or give another folder")
        return cls(content)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the run that made the folder."""
        return part(self.content, "settings")

    @property
    def arguments(self) -> dict[str, Any]:
        return part(self.content, "arguments")

    @property
    def images(self) -> dict[str, Any]:
        """Of a synthetic set: what is said of each image, by its path relative to the folder."""
        return part(self.content, "images")

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of images: path relative to the folder -> digest."""
        found = {**part(self.content, "sha256")}
        for path, entry in self.images.items():  # those of a synthetic set, with more than a digest
            found.setdefault(path, entry.get("sha256") if isinstance(entry, dict) else None)
        return {path: value for path, value in found.items() if is_digest(value)}

    @property
    def digest(self) -> str | None:
        """What tells the images that it names from those of another time; None where it names none."""
        return digest(self.digests) if self.digests else None

    @property
    def image_count(self) -> int:
        """How many images it speaks of, a recovered set's or a selection's."""
        chosen = part(self.settings, "images")
        return (
            len(self.images)
            or len(part(self.content, "sha256"))
            or sum(len(paths) for paths in chosen.values() if isinstance(paths, list))
        )

    @property
    def is_finished(self) -> bool:
        return self.content.get("finished") is True

    @property
    def is_recovered(self) -> bool:
        """Whether it is of a synthetic set, and not of a selection."""
        return "units" in self.content

    @property
    def method(self) -> str | None:
        """What the set calls its method, on one line."""
        return " ".join((_text(self.content.get("method")) or "").split()) or None

    @property
    def recipe(self) -> str | None:
        """The method that was asked for when the set was recovered."""
        return _text(self.arguments.get("method"))

    def full_name(self, given: str) -> str:
        """The name `given` to the set; where that is its recipe's, the one that says what was changed."""
        return self.method or given if given == self.recipe else given

    @property
    def dataset(self) -> str | None:
        """The data set that was named when the set was made."""
        return _text(self.content.get("dataset") or self.arguments.get("dataset")) or None

    @property
    def criterion(self) -> str | None:
        """By which a selection was chosen."""
        return _text(self.settings.get("criterion"))

    @property
    def seconds(self) -> float:
        """That the stage took; 0 where nothing says it."""
        return seconds(self.content)

    @property
    def input_size(self) -> int | None:
        """Pixels of the input of the network that the images were made or chosen for.

        None where nothing says it: in a manifest that names no images it may be the size of something else.
        """
        found = (self.settings.get("input_size"), self.settings.get("size"), self.content.get("input_size"))
        sizes = [size for size in found if type(size) is int and MIN_SIZE <= size <= MAX_SIZE]
        return sizes[0] if sizes and self.digests else None

    @property
    def kept_ipc(self) -> int | None:
        """The images per class of a selection whose short classes were kept as they are; None for any other."""
        ipc = self.settings.get("ipc") if self.settings.get("short_classes") == KEEP else None
        return ipc if type(ipc) is int and ipc > 0 else None

    @property
    def tiles(self) -> dict[str, Any]:
        """What each of the folder's collages is made of: path -> tiles, as JSON has them."""
        return part(self.content, "tiles")

    @property
    def tile_side(self) -> int:
        """Tiles along a side of the folder's collages; 1 where nothing says it.

        Ranking names the tiles of each collage, a synthetic set how many its starts had.
        """
        side = self.content.get("tile_side")
        if type(side) is int and side > 0:
            return side
        counts = {len(tiles) if isinstance(tiles, list) else 1 for tiles in self.tiles.values()}
        return math.isqrt(counts.pop()) or 1 if len(counts) == 1 else 1


def of_own_images(folder: str | Path) -> Manifest:
    """The manifest of a folder that may be the user's own images: a file of this name may be none of ours there."""
    try:
        return Manifest.of(folder)
    except UserError:
        return Manifest()


def images_of(folder: str) -> str:
    """Where the images are: in a shared set's folder in a part of it, else in the folder itself."""
    images = Path(folder) / IMAGES
    return str(images) if (Path(folder) / SHARED).is_file() and images.is_dir() else folder


def require_whole(folder: str | Path, role: str) -> None:
    """See that a folder with a manifest is finished, and holds the images that this names: a part is another set.

    Raises UserError where it does not. `role` names the folder in messages ("--syn-dir").
    """
    found = of_own_images(folder)
    if not isinstance(found.content.get("settings"), dict):
        return
    if found.content.get("finished") is False:
        raise UserError(
            f"{role} {folder}: is not complete: what makes it was stopped, or is still at work; run its command again"
        )
    if missing := sorted(name for name in found.digests if not (Path(folder) / name).is_file()):
        raise UserError(
            f"{role} {folder}: {listed(missing, 1)} {'is' if len(missing) == 1 else 'are'} missing of the "
            f"{len(found.digests)} images of {Path(folder) / MANIFEST}: run the command that makes the set again, or "
            "remove that file if what is left is what you want"
        )


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """An entry of a record that is an object; an empty one where it is missing, or anything else."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def is_digest(value: Any) -> bool:
    """Whether it is a SHA-256 as records have it."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def seconds(record: dict[str, Any]) -> float:
    """That a record says its stage took; 0 where it says none, or what cannot be."""
    value = record.get("seconds")
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else 0.0


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
