"""Stages under utils.run.launch, as users start them on several processes."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

LAUNCH = [sys.executable, "-m", "utils.run.launch", "--standalone"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def words(place, stage, ranks, restarts=0, **changes):
    several = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return [*LAUNCH, *several, "-m", stage, *place.command(stage, **changes)]


def launch(place, stage, ranks, **changes):
    done = subprocess.run(words(place, stage, ranks, **changes), cwd=ROOT, text=True, capture_output=True, env=ENV)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def started(place, stage, ranks, **changes):
    line = words(place, stage, ranks, **changes)
    return subprocess.Popen(line, cwd=ROOT, text=True, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ranks_of(launcher):
    """The process ids of a launcher's ranks, while there are any."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(process) for process in found]
