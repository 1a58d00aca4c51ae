"""Shared work: numbered pieces, of which any process takes the next free one.

The scores of ranking, the units of recover and the shards of soft labels are such pieces. A piece depends on nothing
but the identity of the work and its number, so the result is the same however many processes there are and however
often they are killed. Whoever finds all pieces done puts them together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator

from filelock import Timeout

from utils.run.errors import UserError
from utils.run.files import digest, make_folder, read_json, write_json
from utils.run.locks import FileLock


class SharedWork:
    """`count` pieces, each with a JSON record of its result in `folder` once it is done.

    `is_done(number)` may ask for more than a record, such as the files that it names.
    """

    def __init__(self, folder: str | Path, identity: dict, count: int, is_done: Callable[[int], bool] | None = None):
        self.folder, self.identity, self.count = Path(folder), digest(identity), count
        self.is_done = is_done or (lambda number: self.record(number) is not None)
        self._locks: dict[int, FileLock] = {}
        self._replaces = False  # what other work left in the folder

    def missing(self) -> list[int]:
        """The pieces that are not done, whoever may be at work on them."""
        return [number for number in range(self.count) if not self.is_done(number)]

    def take(self) -> Iterator[int]:
        """The pieces that are neither done nor another process's, each chosen when it is asked for.

        A piece stays this process's until it is saved or released. A process that dies gives its pieces back: they are
        looked at again until none is free, whether they were passed already or not.
        """
        try:
            make_folder(self.folder)
            opened = os.open(self.folder, os.O_RDONLY)  # while it is open, no later folder has its identity
        except (FileNotFoundError, FileExistsError):
            if self.folder.exists():  # as a file
                raise
            return  # it was there a moment ago: another process has put everything together
        left = list(range(self.count))  # neither done, as far as is known, nor had by this process
        try:
            found = True
            while found:
                found = False
                for number in tuple(left):
                    if self.is_done(number):
                        left.remove(number)
                        continue
                    if number in self._locks or not self._lock(number):
                        continue
                    if self.is_done(number):  # since the first look
                        self._unlock(number)
                        continue
                    if self._is_removed(opened):  # so it only seems not to be done
                        self._unlock(number)
                        with contextlib.suppress(OSError):
                            self.folder.rmdir()  # FileLock makes folders that are missing
                        return
                    found = True
                    left.remove(number)
                    self._say_if_replaced(number)
                    yield number
        finally:
            os.close(opened)

    def save(self, number: int, content: dict[str, Any]) -> None:
        """Record a piece as done. `content` is JSON-able."""
        # Pieces that were taken have a folder, unless another process had their results and put everything together.
        if number not in self._locks or self.folder.is_dir():
            entry = {"identity": self.identity, "content": content, "sha256": digest(content)}
            write_json(self._path(number), entry)
        self._unlock(number)

    def record(self, number: int) -> dict[str, Any] | None:
        """What was saved of a piece; None if nothing was, or by other work. A damaged record is named and not used."""
        path = self._path(number)
        if not path.exists():
            return None
        entry = self._entry(number)
        if entry is None:
            if path.exists():  # else another process has put everything together since
                print(f"{path}: damaged, and not used; piece {number} is done again")
            return None
        return entry["content"] if entry["identity"] == self.identity else None

    def records(self) -> list[dict[str, Any]] | None:
        """The records of all pieces in order; None while some are missing."""
        found = []
        for number in range(self.count):
            content = self.record(number)
            if content is None:
                return None
            found.append(content)
        return found

    def __enter__(self) -> "SharedWork":
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._locks):
            self._unlock(number)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # if nothing came of it, so that other work finds no trace of this

    def remove(self) -> None:
        """Delete the records: everything is put together."""
        self.discard(self.folder)

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete a work's folder. Other processes find no pieces any more, not missing ones."""
        removed = folder.with_name(f".{folder.name.lstrip('.')}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        if folder.exists():
            try:
                os.rename(folder, removed)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return  # another process was faster
        shutil.rmtree(removed, ignore_errors=True)

    def _entry(self, number: int) -> dict[str, Any] | None:
        """What is in the file of a piece, by whatever work; None if that is missing or damaged."""
        try:
            entry = read_json(self._path(number))
            return entry if digest(entry["content"]) == entry["sha256"] and "identity" in entry else None
        except (OSError, UserError, TypeError, KeyError):
            return None

    def _say_if_replaced(self, number: int) -> None:
        """Once, that what was done for other settings is lost."""
        if self._replaces:
            return
        entry = self._entry(number)
        if entry is not None and entry["identity"] != self.identity:
            self._replaces = True
            print(f"{self.folder}: holds work of other settings or images, which this replaces", flush=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _is_removed(self, opened: int) -> bool:
        """Whether the folder that was opened is no longer in its place."""
        try:
            return not os.path.samestat(os.fstat(opened), os.stat(self.folder))
        except OSError:
            return True

    def _lock(self, number: int) -> bool:
        if not self.folder.is_dir():  # removed: another process has put everything together
            return False
        lock = FileLock.at(self.folder / f".{number:06d}.lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError, FileExistsError):  # the latter two where the folder was removed meanwhile
            return False
        self._locks[number] = lock
        return True

    def _unlock(self, number: int) -> None:
        lock = self._locks.pop(number, None)
        if lock is not None:
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held
            lock.release()
