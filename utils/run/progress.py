"""What is shown of long work: its progress bar, and lines that are said once."""

from __future__ import annotations

import functools
import os
import sys
import threading

from tqdm import tqdm

from utils.run import distributed


class _Bar(tqdm):
    def update(self, n: float = 1) -> bool | None:
        distributed.keep_alive()
        return super().update(n)


def _renew_lock() -> None:
    """Of threads alone: tqdm's own is shared with forked processes, and one killed while it draws stops them all."""
    _Bar.set_lock(threading.RLock())


_renew_lock()
os.register_at_fork(after_in_child=_renew_lock)  # another thread may hold it at that moment


def progress(**options) -> tqdm:
    """A tqdm bar of the main process. It writes seldom where nobody watches, as into a log file.

    On any rank its updates show those that wait for this one that it works.
    """
    interval = 0.5 if sys.stderr.isatty() else 20
    return _Bar(disable=not distributed.is_main_process(), mininterval=interval, maxinterval=60, **options)


@functools.cache
def say_once(line: str) -> None:
    """Print a line that several parts of one process may come to."""
    print(line)
