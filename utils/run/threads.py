"""Threads and processes that the system does not let this user start (`ulimit -u`, a container's limit)."""

from __future__ import annotations

import errno
import resource
import threading

from utils.run.cpus import pids_limit
from utils.run.errors import UserError

CANNOT_START = "can't start new thread"  # as Python says it


def require(count: int) -> None:
    """Raises UserError where this process cannot have `count` threads more.

    To be asked before a library starts its own, which would end the process where it cannot. Where the address space
    is limited nothing is asked: threads would take of it.
    """
    if _has_limited_memory():
        return
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            started.append(threading.Thread(target=done.wait, daemon=True))
            started[-1].start()
    except RuntimeError:
        raise explained() from None
    finally:
        done.set()
        for thread in started:
            if thread.ident is not None:
                thread.join()


def is_thread_limit(error: BaseException) -> bool:
    """Whether `error` says that a thread or a process could not be started for their number."""
    if isinstance(error, OSError):
        return error.errno == errno.EAGAIN
    text = str(error)
    if not isinstance(error, RuntimeError) or (CANNOT_START not in text and "Resource temporarily" not in text):
        return False
    return not _has_limited_memory()  # else there may be none left for a thread's stack


def _has_limited_memory() -> bool:
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def explained() -> UserError:
    """The error that names the limits, and what to do."""
    own, limit = resource.getrlimit(resource.RLIMIT_NPROC)[0], pids_limit()
    limits = f"`ulimit -u` is {'unlimited' if own == resource.RLIM_INFINITY else own}, for all that the user runs"
    if limit is not None:
        limits += f"; the container or job may have {limit} (pids.max of its cgroup)"
    return UserError(
        f"no more threads or processes can be started ({limits}): raise the limit, or set OMP_NUM_THREADS=1 and give "
        "--workers 0"
    )
