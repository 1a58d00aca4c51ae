"""Bars of forked processes: none waits for a lock that another process has taken with it."""

import subprocess
import sys

import pytest

from conftest import ROOT

KILLED_CHILD = """
import os, signal
from utils.run.progress import progress
progress(total=1).close()  # as in a process that has drawn before
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    with progress(total=1).get_lock():
        os.write(writing, b"x")
        signal.pause()
os.read(reading, 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
with progress(total=1) as bar:
    bar.update()
"""
HELD_BY_A_THREAD = """
import os, threading
from utils.run.progress import progress
held, done = threading.Event(), threading.Event()
def hold():
    with progress(total=1).get_lock():
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    with progress(total=1) as bar:
        bar.update()
    os._exit(0)
status = os.waitpid(child, 0)[1]
done.set()
assert status == 0
"""


@pytest.mark.parametrize("script", [KILLED_CHILD, HELD_BY_A_THREAD], ids=["a killed child", "a thread of the parent"])
def test_a_lock_that_nobody_gives_back_holds_up_no_other_process(script):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr or "1/1" in done.stderr
