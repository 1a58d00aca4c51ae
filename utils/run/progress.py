"""The progress bar of long work."""

from __future__ import annotations

import sys

from tqdm import tqdm

from utils.run import distributed


class _Bar(tqdm):
    def update(self, n: float = 1) -> bool | None:
        distributed.keep_alive()
        return super().update(n)


def progress(**options) -> tqdm:
    """A tqdm bar of the main process. It writes seldom where nobody watches, as into a log file.

    On any rank its updates show those that wait for this one that it works.
    """
    interval = 0.5 if sys.stderr.isatty() else 20
    return _Bar(disable=not distributed.is_main_process(), mininterval=interval, maxinterval=60, **options)
