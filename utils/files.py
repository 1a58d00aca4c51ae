"""Files that appear whole or not at all, and output folders that belong to one run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator


class UserError(Exception):
    """Something the user can mend. Shown as one line; the process ends with exit code 2."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` if the block succeeds.

    A reader therefore sees the old file or the new one, never a part of it. The temporary name carries the
    process id, so that two processes never write into the same one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, because writers such as PIL choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Raises UserError where the file is not readable JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}); remove it and run the stage again") from None


def sha256(path: str | Path) -> str:
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def differences(old: dict, new: dict) -> str:
    """`name: old -> new` for every entry that differs, for messages."""
    names = sorted(set(old) | set(new))
    return ", ".join(f"{name}: {old.get(name)} -> {new.get(name)}" for name in names if old.get(name) != new.get(name))


def claim(folder: str | Path, record_name: str, settings: dict, overwrite: bool) -> dict | None:
    """Make `folder` this run's, and say how far the same run came before.

    The record is a JSON file `record_name` in the folder whose `settings` entry names the run. Returns that
    record if it is this run's, None if the folder is new (or was emptied, with `overwrite`). Raises UserError if
    the folder holds files of another run or files that nobody claimed.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder}: is a file; an output folder is needed")
    record_path = folder / record_name
    if record_path.exists():
        record = read_json(record_path)
        found = record.get("settings", {}) if isinstance(record, dict) else {}
        if found == settings:
            return record
        if not overwrite:
            raise UserError(f"{folder} holds another run ({differences(found, settings)}); "
                            "choose another folder, or give --overwrite")
    elif folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"{folder} is not empty and not a run of this stage; choose another folder, or give --overwrite")
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_json(record_path, {"settings": settings, "finished": False})
    return None
