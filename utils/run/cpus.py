"""How many CPUs this process may use: not as many as the machine has, where a scheduler or a container allows less."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Iterator

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """CPUs of this process by its affinity and its cgroup's quota, shared among the processes that torchrun started.

    At least 1.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, job_cpus() // (int(local) if local.isdecimal() and int(local) else 1))


def job_cpus() -> int:
    """CPUs of all local processes together; part of one counts as one."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *(math.ceil(quota) for quota in _quotas())]))


def pids_limit() -> int | None:
    """How many processes and threads the cgroups of this process may have; None without a limit."""
    found = [_read(folder / "pids.max") for folder, _ in _folders("pids")]
    return min((int(text) for text in found if text.isdecimal()), default=None)


def _quotas() -> Iterator[float]:
    """The quotas, in CPUs, of this process's cgroups, version 2 and 1, and of those above them."""
    for folder, version in _folders("cpu"):
        if version == 2:
            yield from _quota(*(_read(folder / "cpu.max").split() or ("max",))[:2])
        else:
            yield from _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _folders(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's cgroups for a controller and of those above them, and their version, 2 or 1."""
    for line in _read(OWN_CGROUPS).splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            for folder in _upwards(CGROUPS, path):
                yield folder, 2
        elif controller in controllers.split(","):
            for mount in (CGROUPS / controllers, CGROUPS / controller):
                for folder in _upwards(mount, path):
                    yield folder, 1


def _upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a cgroup and those above it. In a container the path may not be there, but the mount is its own."""
    folder = mount / path.lstrip("/")
    return [folder, *(above for above in folder.parents if above == mount or mount in above.parents)]


def _quota(quota: str, period: str = "100000") -> Iterator[float]:
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # max, or no such file
        return
    if share > 0:  # -1 in version 1: none
        yield share


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
