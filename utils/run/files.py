"""Files that appear whole or not at all, and the digests that identify them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import filecmp
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Iterable, Iterator

from utils.run.errors import UserError
from utils.run.signals import SIGNALS

NAME_BYTES = 255  # of a file, on the file systems in use
PARTIAL = re.compile(r"\..*\.partial\b")  # the temporary names of `replacing`; a kill can leave one behind
ABANDONED = 24 * 3600  # seconds after which nobody writes to a temporary file any more, on whatever machine


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk, a quota or a limit says that takes no more
# What file systems answer that cannot be asked to flush a file or a folder.
CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


@contextlib.contextmanager
def replacing(path: str | Path, flushed: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` to write to; rename it to `path` if the block succeeds.

    A reader therefore sees the old file or the new one, never a part of it, also after a power cut: the file is
    on disk before it is renamed, and its folder afterwards. Not `flushed`, this is left to the caller, who has many
    files to write (`flush`, `flush_folder`). No signal cuts the block off. The temporary name carries the machine,
    its container and the process id, so that two processes never write into the same one. What killed processes left is
    removed: those of this machine at once, others after a day. An OSError names a path.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(str(os.getpid()).join(_around(path)))
    with SIGNALS.held():
        try:
            yield temporary
            if flushed:
                _flush(temporary)
            remove_leftovers(path, temporary)  # now: once the file is there, nobody may write it again
            os.replace(temporary, path)
            if flushed:
                _flush(path.parent)
        except OSError as error:
            raise named(error, path) from None
        finally:
            temporary.unlink(missing_ok=True)


def named(error: OSError, path: str | Path) -> OSError:
    """The error with the path that was written, where it has none: who writes to an open file is told of none."""
    return error if error.filename or error.errno is None else OSError(error.errno, error.strerror, str(path))


def flush(paths: Iterable[str | Path]) -> None:
    """See that these files, and their places in their folders, are on disk: they survive a power cut."""
    paths = [Path(path) for path in paths]
    for path in [*paths, *dict.fromkeys(path.parent for path in paths)]:
        _flush(path)


def flush_folder(folder: str | Path) -> None:
    """`flush` for all that is in and below a folder, with everything else on its file system where that is one call.

    Of thousands of small files each would wait for the disk twice.
    """
    if (sync := getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)) is None:
        flush(Path(above) / name for above, _, names in os.walk(folder) for name in [".", *names])
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        if sync(opened) and ctypes.get_errno() not in CANNOT_FLUSH:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(opened)


def _flush(path: Path) -> None:
    """Of a file its bytes, of a folder its list of names. Raises OSError where the disk does not take them."""
    try:
        opened = os.open(path, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):  # may be written and not read; another process has removed it since
        return
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(opened)


def make_folder(folder: str | Path) -> list[Path]:
    """Make a folder and those above it, if they are missing; through a link that leads nowhere yet, what it names.

    Returns those that were missing, the innermost first.
    """
    folder = Path(os.path.realpath(folder))
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    os.makedirs(folder, exist_ok=True)
    for made in reversed(missing):
        _flush(made.parent)
    return missing


def shortened(name: str, limit: int = NAME_BYTES) -> str:
    """A file name cut to `limit` bytes, before its ending, and made its own by a digest of all of it."""
    if len(os.fsencode(name)) <= limit:
        return name
    stem, suffix = os.path.splitext(name)
    suffix = suffix if len(os.fsencode(suffix)) <= 16 else ""
    mark = "~" + hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    kept = os.fsencode(stem)[: limit - len(mark) - len(os.fsencode(suffix))].decode("utf-8", "ignore")
    return f"{kept}{mark}{suffix}"


def _around(path: Path) -> tuple[str, str]:
    """What stands before and after the process id in the temporary names of `path`."""
    # The suffix is kept, because writers such as PIL choose the format by it.
    stem, suffix = (path.stem, path.suffix) if len(os.fsencode(path.suffix)) <= 16 else (path.name, "")
    host, after = machine(), f".partial{suffix}"
    room = NAME_BYTES - len(os.fsencode(f"..{host}.{after}")) - len(str(2**32))  # a process id is shorter
    return f".{shortened(stem, room)}.{host}.", after


def machine() -> str:
    """Among whose processes an id is one process: the machine's, or the container's, which may have the same name."""
    try:
        return f"{os.uname().nodename}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return os.uname().nodename


def remove_leftovers(path: str | Path, written: Path | None = None) -> None:
    """Remove the temporary files of `path` whose processes, on this machine, have ended.

    Beside a file `written` just now also those of others, where they are a day older: by one clock, the file system's.
    """
    before, after = _around(path := Path(path))
    of_any = before.removesuffix(f"{machine()}.")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:  # another process has removed the folder since
        return
    for name in names:
        process = name[: len(name) - len(after)].rpartition(".")[2]
        if not (name.endswith(after) and process.isdecimal()):
            continue
        left = path.with_name(name)
        if name == f"{before}{process}{after}":
            is_abandoned = not _is_running(int(process))
        else:
            is_abandoned = written and name.startswith(of_any) and _is_older(left, written, ABANDONED)
        if is_abandoned:
            left.unlink(missing_ok=True)


def _is_older(left: Path, written: Path, seconds: float) -> bool:
    try:
        return written.stat().st_mtime - left.stat().st_mtime > seconds
    except FileNotFoundError:
        return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_bytes(path: str | Path, *parts: bytes | memoryview) -> None:
    """One after the other: to join large ones would copy them."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(parts)


def copy(source: str | Path, target: str | Path) -> bool:
    """Have `target` hold the bytes of `source`; one that does is left as it is. Whether it was written.

    It is not flushed: the caller has many files to copy (`flush`, `flush_folder`).
    """
    if Path(target).is_file() and filecmp.cmp(source, target, shallow=False):
        return False
    with replacing(target, flushed=False) as temporary:
        try:
            shutil.copyfile(source, temporary)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise OSError(error.errno, error.strerror, str(target)) from None  # shutil names the source
    return True


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, as_json(value))


def read_json(path: str | Path) -> Any:
    """Raises UserError where the file is not readable JSON."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # halves of a character, which no other file could hold
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except (OSError, ValueError, RecursionError) as error:
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

    return ", ".join(
        f"{name}: {short(old.get(name))} -> {short(new.get(name))}"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    )
