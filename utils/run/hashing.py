"""The SHA-256 of many files, with a progress bar."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator, Sequence

from utils.run.cpus import available_cpus
from utils.run.files import sha256
from utils.run.progress import progress


def hashed(folder: Path, names: Sequence[str], title: str, unit: str, at_a_time: int = 1) -> Iterator[str]:
    """The SHA-256 of each of these files in `folder`, in their order, by several threads.

    `at_a_time`: how many a thread takes, more of small ones. `title` and `unit` are the bar's. Raises OSError where a
    file cannot be read.
    """

    def digests(start: int) -> list[str]:
        return [sha256(folder / name) for name in names[start : start + at_a_time]]

    with (
        ThreadPoolExecutor(available_cpus()) as pool,  # hashlib works outside of the interpreter's lock
        progress(total=len(names), desc=title, unit=unit, leave=False, delay=2) as bar,
    ):
        for found in pool.map(digests, range(0, len(names), at_a_time)):
            yield from found
            bar.update(len(found))
