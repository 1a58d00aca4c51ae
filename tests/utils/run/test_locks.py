"""Locks on a file system that has none: one line, and no marker that would outlive its process."""

import errno
import fcntl

import pytest

from utils.run.errors import UserError
from utils.run.locks import FileLock
from utils.run.outputs import locked


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, "not here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="this file system has no locks") as refused, locked(tmp_path / "out"):
        pass
    assert "\n" not in str(refused.value) and "Lustre: -o flock" in str(refused.value)
    monkeypatch.undo()
    with locked(tmp_path / "out"):  # nothing of it is left that would be taken for another process's
        pass


def test_an_error_of_another_kind_is_what_it_is(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="the disk"):
        FileLock.at(tmp_path / "lock").acquire(timeout=0)
