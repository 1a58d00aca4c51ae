"""What the tests of a GPU share: their marks, runtimes that leave no trace, and work in a process of its own."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from utils.run.device import Runtime

DEVICE = "cuda"
needs_gpu = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@contextlib.contextmanager
def gpu(precision="fp32", compile="off", deterministic="on", tf32=False):
    """A runtime of the GPU; what it sets for the whole process is taken back."""
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield Runtime.create(DEVICE, precision, compile, deterministic)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = kept


def alone(code, *words, tests="cuda", **variables):
    """Run `code` in a process of its own, which finds the helpers and the tests of a folder; what it printed."""
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / tests)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}", *map(str, words)],
        text=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
