"""The progress bar of long work."""

from __future__ import annotations

import sys

from tqdm import tqdm

from utils.run import distributed


def progress(**options) -> tqdm:
    """A tqdm bar of the main process. It writes seldom where nobody watches, as into a log file."""
    interval = 0.5 if sys.stderr.isatty() else 20
    return tqdm(disable=not distributed.is_main_process(), mininterval=interval, maxinterval=60, **options)
