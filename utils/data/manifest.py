"""Manifests: what the folder of a selection or of a synthetic set says of itself."""

from __future__ import annotations

import math
import re
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


def images_of(folder: str) -> str:
    """Where the images are: in a shared set's folder in a part of it, else in the folder itself."""
    images = Path(folder) / IMAGES
    return str(images) if (Path(folder) / SHARED).is_file() and images.is_dir() else folder


def read(folder: str | Path) -> dict[str, Any]:
    """The manifest in `folder`; empty for a folder without one. Raises UserError where it is not readable."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a manifest (a JSON object); remove it, or give another folder")
    return content


def part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """An entry of a record that is an object; an empty one where it is missing, or anything else."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def image_digests(folder: str | Path) -> dict[str, str]:
    """The SHA-256 of the images in `folder` that its manifest gives: path relative to the folder -> digest.

    Empty where there is no manifest, or where it says nothing of the kind. Raises UserError as `read` does.
    """
    return _digests(read(folder))


def _digests(content: dict[str, Any]) -> dict[str, str]:
    found = {**part(content, "sha256")}
    for path, entry in part(content, "images").items():  # those of a synthetic set, with more than a digest
        found.setdefault(path, entry.get("sha256") if isinstance(entry, dict) else None)
    return {path: value for path, value in found.items() if is_digest(value)}


def is_digest(value: Any) -> bool:
    """Whether it is a SHA-256 as records have it."""
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def digest_of_images(folder: str | Path) -> str | None:
    """What tells the images that the manifest in `folder` names from those of another time; None where it names none.

    Raises UserError as `read` does.
    """
    found = image_digests(folder)
    return digest(found) if found else None


def require_whole(folder: str | Path, role: str) -> None:
    """See that a folder with a manifest is finished, and holds the images that this names: a part is another set.

    Raises UserError where it does not. `role` names the folder in messages ("--syn-dir").
    """
    path = Path(folder) / MANIFEST
    try:
        content = read(folder)
    except UserError:
        return  # of the user's own images: a file of this name that is none of ours
    if not isinstance(content.get("settings"), dict):
        return
    if content.get("finished") is False:
        raise UserError(
            f"{role} {folder}: is not complete: what makes it was stopped, or is still at work; run its command again"
        )
    named = _digests(content)
    if missing := sorted(name for name in named if not (path.parent / name).is_file()):
        raise UserError(
            f"{role} {folder}: {listed(missing, 1)} {'is' if len(missing) == 1 else 'are'} missing of the {len(named)} "
            f"images of {path}: run the command that makes the set again, or remove that file if what is left is what "
            "you want"
        )


def method(folder: str | Path) -> str | None:
    """What the set in `folder` calls its method, on one line; None where it does not say.

    Raises UserError as `read` does.
    """
    value = read(folder).get("method")
    return " ".join(value.split()) or None if isinstance(value, str) else None


def recipe(folder: str | Path) -> str | None:
    """The method that was asked for when the set in `folder` was recovered; None where none was.

    Raises UserError as `read` does.
    """
    value = part(read(folder), "arguments").get("method")
    return value if isinstance(value, str) else None


def full_name(folder: str | Path, given: str) -> str:
    """The name `given` to the set in `folder`; where that is its recipe's, the one of the manifest: with what changed.

    Raises UserError as `read` does.
    """
    return method(folder) or given if given == recipe(folder) else given


def dataset(folder: str | Path) -> str | None:
    """The data set that was named when the set in `folder` was made; None where none was.

    Raises UserError as `read` does.
    """
    content = read(folder)
    value = content.get("dataset") or part(content, "arguments").get("dataset")
    return value if isinstance(value, str) else None


def criterion(folder: str | Path) -> str | None:
    """By which a selection was chosen, if its manifest says so."""
    found = part(read(folder), "settings").get("criterion")
    return found if isinstance(found, str) else None


def input_size(folder: str | Path) -> int | None:
    """Pixels of the input of the network that the images in `folder` were made or chosen for.

    None where nothing says it: in a manifest that names no images it may be the size of something else.
    """
    try:
        content = read(folder)
    except UserError:
        return None  # of the user's own images: a file of this name that is none of ours
    settings = part(content, "settings")
    found = (settings.get("input_size"), settings.get("size"), content.get("input_size"))
    sizes = [size for size in found if type(size) is int and MIN_SIZE <= size <= MAX_SIZE]
    return sizes[0] if sizes and _digests(content) else None


def seconds(content: dict[str, Any]) -> float:
    """That a manifest or a checkpoint says its stage took; 0 where it says none, or what cannot be."""
    value = content.get("seconds")
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else 0.0


def kept_ipc(folder: str | Path) -> int | None:
    """The images per class of a selection whose short classes were kept as they are; None for any other folder.

    Raises UserError as `read` does.
    """
    settings = part(read(folder), "settings")
    ipc = settings.get("ipc") if settings.get("short_classes") == KEEP else None
    return ipc if type(ipc) is int and ipc > 0 else None


def tiles(folder: str | Path) -> dict[str, Any]:
    """What the manifest in `folder` says each of its collages is made of: path -> tiles, as JSON has them.

    Empty where it says nothing of the kind. Raises UserError as `read` does.
    """
    return part(read(folder), "tiles")


def tile_side(folder: str | Path) -> int:
    """Tiles along a side of the collages in `folder`, by its manifest; 1 where it says nothing of the kind.

    Ranking names the tiles of each collage, a synthetic set how many its starts had. Raises UserError as `read` does.
    """
    content = read(folder)
    side = content.get("tile_side")
    if type(side) is int and side > 0:
        return side
    counts = {len(tiles) if isinstance(tiles, list) else 1 for tiles in part(content, "tiles").values()}
    return math.isqrt(counts.pop()) or 1 if len(counts) == 1 else 1
