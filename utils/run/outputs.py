"""Outputs that belong to one run: checked before hours of work, claimed by settings, locked while written."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Iterable, Iterator

from filelock import Timeout

from utils.run.errors import UserError
from utils.run.files import (
    NAME_BYTES,
    PARTIAL,
    differences,
    flush,
    flush_folder,
    make_folder,
    named,
    read_json,
    write_json,
)
from utils.run.locks import FileLock

BESIDE_BYTES = 40  # of what is added to an output's name for hidden files beside it


def beside(output: str | Path, what: str) -> Path:
    """The hidden file or folder beside an output that belongs to it: .OUTPUT.what, of at most BESIDE_BYTES more."""
    return Path(output).with_name(f".{Path(output).name}.{what}")


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """Raises UserError if `path` cannot be created, or is, holds or lies in one of the `inputs`."""
    if len(os.fsencode(Path(path).name)) > NAME_BYTES - BESIDE_BYTES:
        raise UserError(
            f"{path} cannot be written: names of files beside it begin with its own; give a name of at most "
            f"{NAME_BYTES - BESIDE_BYTES} bytes"
        )
    try:
        path = Path(path).resolve()
    except (OSError, RuntimeError):  # the latter in Python before 3.13
        raise UserError(f"{path} cannot be written: it is a link that leads to itself; remove it") from None
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "not writable" if parent.is_dir() else "a file, not a folder"
        raise UserError(f"{path} cannot be written: {parent} is {reason}")
    for name in inputs:
        source = Path(name).resolve()
        if path == source or path in source.parents or source in path.parents:
            raise UserError(f"{path} cannot be the output: it would mix with the input {source}; choose another folder")


def check_folder(folder: str | Path, record_name: str, *inputs: str | Path) -> set[str]:
    """The names in an output folder, if it exists.

    Raises UserError if it cannot be an output, or holds files but no `record_name`: then no run wrote them.
    """
    folder = Path(folder)
    check_output(folder, *inputs)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; an output folder is needed")
    # Listed before the record is looked for: another rank may write that one at this very moment.
    entries = {entry.name for entry in folder.iterdir() if not PARTIAL.match(entry.name)} if folder.is_dir() else set()
    if entries and not (folder / record_name).exists():
        raise UserError(f"{folder} is not empty and holds no run of this stage; choose another folder")
    return entries


def claim(
    folder: str | Path,
    record_name: str,
    settings: dict,
    overwrite: bool,
    *inputs: str | Path,
    files: Iterable[str] | None = None,
) -> dict:
    """Make `folder` this run's, and return the record of how far the same run came before.

    The record is a JSON file `record_name` in the folder, whose `settings` entry identifies the run. With `overwrite`
    another run's folder is emptied. `files` are the paths in the folder that the run is going to write, where people
    keep files of their own between them: the record names them, and of another run only those are removed that its
    record names. Raises UserError if the folder holds another run, or files that no run wrote (those are never
    removed), or touches one of the folders `inputs`.
    """
    folder, record_path = Path(folder), Path(folder) / record_name
    entries = check_folder(folder, record_name, *inputs)
    if record_path.exists():
        record = read_json(record_path)
        found = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{record_path}: is not the record of a run; choose another folder")
        if found == settings:
            return record
        if not overwrite and entries - {record_name}:  # a run without any result is in nobody's way
            raise UserError(
                f"{folder} holds another run ({differences(found, settings)}); choose another folder, "
                "or give --overwrite"
            )
        write_json(record_path, {**record, "finished": False})  # what is left of it is no whole run from here on
        if files is None:
            _empty(folder, record_name)
        else:
            _remove(folder, record.get("files"))
    make_folder(folder)
    record = {"settings": settings, "finished": False}
    if files is not None:
        record["files"] = dict.fromkeys(files)
    write_json(record_path, record)
    return record


def _empty(folder: Path, record_name: str) -> None:
    """Remove what a folder holds, the record last: stopped within, the same command finds a run's folder, and goes on.

    The folder itself stays, and so does a link that leads to it.
    """
    for entry in sorted(folder.iterdir(), key=lambda path: path.name == record_name):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _remove(folder: Path, names: object) -> None:
    """Remove the files of these paths in a folder, as a record names them, and the folders that this leaves empty."""
    root = folder.resolve()
    for path in (folder / name for name in (names if isinstance(names, dict) else ())):
        place = path.parent.resolve()
        if root not in (place, *place.parents):  # records come from others, too
            continue
        if path.is_file() or path.is_symlink():
            path.unlink()
        with contextlib.suppress(OSError):
            while place != root:
                place.rmdir()
                place = place.parent


@contextlib.contextmanager
def built(output: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` at the end: what stops within leaves nothing that looks whole.

    Of a link to an empty folder, where it leads. Raises UserError if there is anything in `output`, or another process
    writes it.
    """
    output = Path(os.path.realpath(output))
    with locked(output):
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(
                f"{output} exists and is not empty: it is whole if this command wrote it; else choose another folder"
            )
        with built_under_lock(output) as partial:
            yield partial


@contextlib.contextmanager
def built_under_lock(output: Path) -> Iterator[Path]:
    """`built` for who holds the lock, and knows that there is nothing in `output`, which is no link.

    All of it is on disk before it gets its name, and the name when this ends.
    """
    partial = beside(output, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_folder(partial)
        yield partial
        flush_folder(partial)
        os.replace(partial, output)
        flush([output])
    except OSError as error:
        raise named(error, output) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(output: str | Path, wait: float = 0) -> Iterator[None]:
    """Let no other process write `output` within; the lock is a hidden file beside it.

    The system releases the lock however a process ends. The ranks of one run write into one output, so each has a
    lock of its own. Raises UserError if another process still holds the lock after `wait` seconds.
    """
    output, rank = Path(output).absolute(), os.environ.get("RANK", "0")
    path = beside(output, "lock" if rank == "0" else f"rank{rank}.lock")
    made = make_folder(path.parent)
    lock = FileLock.at(path)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        owner = path.read_text(errors="replace") if path.exists() else ""
        raise UserError(
            f"{output}: {owner or 'another process'} is writing there; wait for its end, or choose another output"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {os.uname().nodename}")
        yield
        made = []
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it sees that this file is gone
        lock.release()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # after an error, if nothing came of it
