"""The record of a ranking file: a JSON file beside it that says what scored it.

So that another teacher's scores, or those of other images, are not served in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.data.image_folder import ImageFolder
from utils.data.sizes import MIN_SIZE
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.files import read_json, sha256, write_json


def path_of(ranking_file: str | Path) -> Path:
    return Path(f"{ranking_file}.json")


def settings_of(teacher: Teacher, folder: ImageFolder) -> dict[str, Any]:
    """What decides the scores of the images in `folder`, which has the teacher's order of classes."""
    return {**teacher.identity(), **images_of(folder)}


def images_of(folder: ImageFolder) -> dict[str, Any]:
    """The classes in label order, and the digest of names and bytes, or of names and sizes where there are many."""
    return {"classes": list(folder.classes), "images": folder.identity()}


def write(written: Path, ranking_file: str | Path, content: dict[str, Any]) -> None:
    """Write `content`, and the digest of the file `written`, before that gets the name `ranking_file`."""
    write_json(path_of(ranking_file), {**content, "sha256": sha256(written)})


def read(ranking_file: str | Path) -> dict[str, Any] | None:
    """The record of a ranking file; None where there is none, or the file has changed since.

    Raises UserError where the file in its place is no record.
    """
    path = path_of(ranking_file)
    if not path.exists():
        return None
    content = read_json(path)
    if not (isinstance(content, dict) and isinstance(content.get("settings"), dict) and "sha256" in content):
        raise UserError(f"{path}: is not the record of a ranking file; move it away, or give another --ranking-file")
    return content if Path(ranking_file).is_file() and sha256(ranking_file) == content["sha256"] else None


def input_size(content: dict[str, Any]) -> int | None:
    """Pixels of the input of the teacher that scored; None where the record says none, or what cannot be."""
    size = content["settings"].get("input_size")
    return size if type(size) is int and size >= MIN_SIZE else None
