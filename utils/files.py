"""Files that appear whole or not at all, and output folders that belong to one run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Iterator


MANIFEST = "manifest.json"  # what the folder of a selection or of synthetic images says of itself
PARTIAL = re.compile(r"\..*\.partial\b")  # the temporary names of `replacing`; a kill can leave one behind


class UserError(Exception):
    """Something the user can mend. Shown as one line; the process ends with exit code 2."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` if the block succeeds.

    A reader therefore sees the old file or the new one, never a part of it. The temporary name carries the machine
    and the process id, so that two processes never write into the same one. What killed processes left is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(str(os.getpid()).join(_around(path)))
    try:
        yield temporary
        os.replace(temporary, path)
        remove_leftovers(path)
    finally:
        temporary.unlink(missing_ok=True)


def _around(path: Path) -> tuple[str, str]:
    """What stands before and after the process id in the temporary names of `path`."""
    # The suffix is kept, because writers such as PIL choose the format by it.
    return f".{path.stem}.{os.uname().nodename}.", f".partial{path.suffix}"


def remove_leftovers(path: str | Path) -> None:
    """Remove what processes of this machine that are no more have written towards `path`."""
    before, after = _around(path := Path(path))
    for name in os.listdir(path.parent):
        if name.startswith(before) and name.endswith(after):
            process = name[len(before):len(name) - len(after)]
            if process.isdecimal() and not _runs(int(process)):
                path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def check_output(path: str | Path, *inputs: str | Path) -> None:
    """Raises UserError if `path` cannot be made, or is, holds or lies in one of the `inputs`; before hours of work."""
    path = Path(path).resolve()
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "not writable" if parent.is_dir() else "a file, not a folder"
        raise UserError(f"{path} cannot be written: {parent} is {reason}")
    for name in inputs:
        source = Path(name).resolve()
        if path == source or path in source.parents or source in path.parents:
            raise UserError(f"{path} cannot be the output: it would mix with the input {source}; choose another folder")


class _Locks:
    """The outputs that this process alone may write into, until its stage ends.

    The system takes a lock back however its process dies, so none is ever left behind.
    """

    def __init__(self) -> None:
        self.stack: contextlib.ExitStack | None = None
        self.held: set[Path] = set()

    @contextlib.contextmanager
    def releasing(self) -> Iterator[None]:
        """What is held within is released at the end; outside of a stage nothing is locked."""
        with contextlib.ExitStack() as self.stack:
            try:
                yield
            finally:
                self.stack = None
                self.held.clear()

    def hold(self, output: str | Path) -> None:
        """Take the lock of `output`, a hidden file beside it. Raises UserError if another process has it.

        The ranks of one run write into one output, so each has a lock of its own.
        """
        output, rank = Path(output).absolute(), os.environ.get("RANK", "0")
        if self.stack and output not in self.held:
            name = f".{output.name}.lock" if rank == "0" else f".{output.name}.rank{rank}.lock"
            self.stack.enter_context(_locked(output.with_name(name), output))
            self.held.add(output)


LOCKS = _Locks()


@contextlib.contextmanager
def _locked(path: Path, output: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise UserError(f"{output}: {owner or 'another process'} is writing there; wait for its end, or choose another "
                            "output") from None
        except OSError:  # a file system that has no locks
            break
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                break
        os.close(descriptor)  # its last owner has just removed this very file
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


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
    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 40 else f"{text[:12]}..."

    return ", ".join(f"{name}: {short(old.get(name))} -> {short(new.get(name))}"
                     for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name))


def check_folder(folder: str | Path, record_name: str, *inputs: str | Path) -> set[str]:
    """The names in an output folder, if it is there. Raises UserError if it cannot be one, or holds files that are no run's."""
    folder = Path(folder)
    check_output(folder, *inputs)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; an output folder is needed")
    # Listed before the record is looked for: another rank may write that one at this very moment.
    entries = {entry.name for entry in folder.iterdir() if not PARTIAL.match(entry.name)} if folder.is_dir() else set()
    if entries and not (folder / record_name).exists():
        raise UserError(f"{folder} is not empty and holds no run of this stage; choose another folder")
    return entries


def claim(folder: str | Path, record_name: str, settings: dict, overwrite: bool, *inputs: str | Path) -> dict:
    """Make `folder` this run's, and return the record of how far the same run came before.

    The record is a JSON file `record_name` in the folder, whose `settings` entry names the run. With `overwrite`
    another run's folder is emptied. Raises UserError if the folder holds another run, or files that are no run's
    (those are never removed), or touches one of the folders `inputs`, or if another process is at work in it.
    """
    folder, record_path = Path(folder), Path(folder) / record_name
    entries = check_folder(folder, record_name, *inputs)
    LOCKS.hold(folder)
    if record_path.exists():
        record = read_json(record_path)
        found = record.get("settings") if isinstance(record, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{record_path}: is no record of a run; choose another folder")
        if found == settings:
            return record
        if not overwrite and entries - {record_name}:  # a run that came to nothing is in nobody's way
            raise UserError(f"{folder} holds another run ({differences(found, settings)}); choose another folder, "
                            "or give --overwrite")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": settings, "finished": False}
    write_json(record_path, record)
    return record
