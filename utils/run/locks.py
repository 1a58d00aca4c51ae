"""Locks on files that the system releases however their process ends."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path
from typing import Any

import filelock

from utils.run.errors import UserError

# What flock says on a file system without it, or without the service that it needs.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Later versions of filelock would take a marker by themselves.
_HARD = {name: False for name in inspect.signature(filelock.FileLock.__init__).parameters if name == "fallback_to_soft"}


class FileLock(filelock.FileLock):
    """Raises UserError on a file system without flock: a marker in its place would outlive a machine that died."""

    @classmethod
    def at(cls, path: str | Path) -> FileLock:
        return cls(path, **_HARD)

    def acquire(self, *args: Any, **options: Any) -> Any:
        try:
            return super().acquire(*args, **options)
        except (NotImplementedError, OSError) as error:  # the former from earlier versions of filelock
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
        raise UserError(
            f"{self.lock_file}: this file system has no locks that the system releases (flock): mount it with them for "
            "all machines that share it (Lustre: -o flock; NFS 3: a lock daemon), or write to another one"
        )
