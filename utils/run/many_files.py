"""Many files: what is asked of each, by several threads, in their order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Callable, Iterator, Sequence, TypeVar

from utils.run.cpus import available_cpus

Item = TypeVar("Item")
Found = TypeVar("Found")

AHEAD = 2  # tasks of each thread that are begun, or done and not taken yet: what they found takes memory
ASKED = 256  # files of which a thread asks the disk something at a time
WAITING = 16  # threads at least that do: a file system on a network takes its time, and answers many at once


def each(
    function: Callable[[Item], Found], items: Sequence[Item], threads: int | None = None, at_a_time: int = 1
) -> Iterator[list[Found]]:
    """`function` of `at_a_time` items, and of the next ones, in their order; by as many threads as there are CPUs.

    The first error in this order is raised. Threads are enough: hashing, decoding and waiting for a disk go on outside
    of the interpreter's lock.
    """
    threads = threads or available_cpus()
    waiting: deque[Future] = deque()

    def work(start: int) -> list[Found]:
        return [function(item) for item in items[start : start + at_a_time]]

    with ThreadPoolExecutor(threads) as pool:
        tasks = (pool.submit(work, start) for start in range(0, len(items), at_a_time))
        waiting.extend(islice(tasks, AHEAD * threads))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            yield found


def asked(function: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[list[Found]]:
    """`each` of what waits for the disk and computes next to nothing: by more threads, many items at a time."""
    return each(function, items, max(WAITING, available_cpus()), ASKED)
