"""A limit on threads and processes is named in one line, whoever could not start one."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from conftest import ROOT, Place
from utils.run import cpus, threads
from utils.run.errors import UserError
from utils.run.memory import is_out_of_memory

NO_THREAD = RuntimeError("can't start new thread")


def test_where_threads_cannot_be_started_the_limits_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (40, 40) if kind == resource.RLIMIT_NPROC else (-1, -1))
    (tmp_path / "own").write_text("0::/job7/step0\n")
    monkeypatch.setattr(cpus, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cpus, "CGROUPS", tmp_path)
    for folder, limit in (("job7", "300"), ("job7/step0", "max")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pids.max").write_text(f"{limit}\n")
    running, start = [], threading.Thread.start

    def starting(thread):
        if len(running) == 3:
            raise NO_THREAD
        running.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    threads.require(3)
    running.clear()
    with pytest.raises(UserError, match="`ulimit -u` is 40.*300.*OMP_NUM_THREADS=1.*--workers 0"):
        threads.require(4)
    assert not any(thread.is_alive() for thread in running)


@pytest.mark.parametrize(
    "error", [NO_THREAD, BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), RuntimeError("Resource temporarily")]
)
def test_a_stage_says_it_whatever_could_not_start(place, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("recover.__main__.split", fails)
    outcome = place.run("recover", batch_size=4)
    assert outcome.code == 2 and "`ulimit -u` is" in outcome.err and len(outcome.err.splitlines()) == 1


def test_a_thread_that_has_no_memory_is_another_matter(monkeypatch):
    assert not is_out_of_memory(NO_THREAD)
    limits = {resource.RLIMIT_AS: (1 << 30, 1 << 30)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (-1, -1)))
    assert is_out_of_memory(NO_THREAD)


# --- for real --------------------------------------------------------------------------------------------------------

# The limit is no limit for root, nor for who may pass it; this user can read what root can.
READS = "+dac_override,+dac_read_search"
OTHER_USER = ["setpriv", "--reuid=61234", "--regid=65534", "--clear-groups", f"--inh-caps=-all,{READS}"]
OTHER_USER += [f"--ambient-caps=-all,{READS}", "--bounding-set=-sys_resource,-sys_admin", "--"]


def limited(count, *words):
    line = ["bash", "-c", f'ulimit -u {count}; exec "$@"', "it", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "3"}
    return subprocess.run([*OTHER_USER, *line], cwd=ROOT, text=True, capture_output=True, env=env, timeout=300)


@pytest.fixture
def open_place(stock):
    """A place of that user, where no folder above is closed to him."""
    if os.geteuid() or not shutil.which("setpriv") or limited(60, sys.executable, "-c", "import torch").returncode:
        pytest.skip("another user cannot be had here")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(stock.root, folder, dirs_exist_ok=True)
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, 61234, 65534)
        yield Place(Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, count, workers", [("squeeze", 3, 0), ("recover", 2, 0), ("ranking", 9, 2), ("squeeze", 10, 2)]
)
def test_too_low_a_limit_ends_in_one_line(open_place, stage, count, workers):
    """In the pool of the arithmetic, which would end the process itself, or in the processes that read."""
    done = limited(count, sys.executable, "-m", stage, *open_place.command(stage, workers=workers))
    assert done.returncode == 2 and "Traceback" not in done.stderr and "libgomp" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no more threads or processes can be started")
    assert f"`ulimit -u` is {count}" in done.stderr and done.stderr.count("error:") == 1
