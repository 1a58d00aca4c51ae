"""Ranks that train together: one decides for all, and none waits for ever for one that hangs."""

import subprocess
import time

import pytest
import torch
from launching import ENV, LAUNCH, launch

from conftest import ROOT

pytestmark = pytest.mark.slow

WAIT = 0.1  # minutes


def run_script(place, text, *words, ranks=2):
    """A script of several ranks that share nothing but their connection."""
    script = place / "script.py"
    script.write_text(text)
    line = [*LAUNCH, "--nproc-per-node", str(ranks), str(script), *map(str, words)]
    env = {**ENV, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=ROOT, text=True, capture_output=True, env=env, timeout=300)


def the_error(done):
    assert "Traceback" not in done.stderr, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


# --- a limit ---------------------------------------------------------------------------------------------------------

TOGETHER = """
import os, sys, time, torch
from utils.run import distributed, entry
from utils.run.progress import progress
def main():
    with distributed.process_group(torch.device("cpu"), float(sys.argv[1])):
        rank = distributed.get_rank()
        distributed.barrier()
        {what}
        print("together again")
entry.run(main)
"""
HANGS = {
    "one hangs": ("time.sleep(600 * (rank == 1)); distributed.barrier()", "rank 1"),
    "one hangs while others decide": ("time.sleep(600 * (rank == 0)); distributed.by_main(lambda: 1)", "rank 0"),
    "one hangs in a step": ("time.sleep(600 * (rank == 1)); distributed.all_reduce_max(1)", "another rank"),
    "they wait for each other": ("distributed.barrier() if rank else distributed.all_reduce_max(1)", ""),
}


def test_a_rank_that_is_late_does_not_miss_the_one_that_has_ended(place):
    """Rank 0's process holds what they meet by; it ends half a second before rank 1 is through."""
    late = "reduce = torch.distributed.all_reduce; "
    late += "torch.distributed.all_reduce = lambda value: (reduce(value), time.sleep(0.5 * rank))"
    done = run_script(place, TOGETHER.replace("{what}", late), WAIT)
    assert done.returncode == 0, done.stderr


OTHERWISE = """
import os, torch
from utils.run import distributed, entry
def main():
    distributed._has_own_gpu = lambda device: os.environ["RANK"] == "0"    # as on a machine with fewer
    with distributed.process_group(torch.device("cuda", 0), 0.1):
        pass
entry.run(main)
"""


def test_machines_that_would_connect_otherwise_are_told_so_at_once(place):
    started = time.monotonic()
    done = run_script(place, OTHERWISE)
    line = the_error(done)
    assert "would be connected by" in line and "Gloo" in line and "NCCL" in line and "--device cpu" in line
    assert done.returncode == 2 and time.monotonic() - started < 60


@pytest.mark.parametrize("what, who", HANGS.values(), ids=HANGS)
def test_a_wait_without_a_sign_of_life_ends_in_one_line_that_says_what_to_do(place, what, who):
    started = time.monotonic()
    done = run_script(place, TOGETHER.replace("{what}", what), WAIT)
    line = the_error(done)
    assert time.monotonic() - started < 120 and done.returncode == 2
    assert line.startswith(f"error: {who}") and "no sign of life for 0.1 minutes" in line
    assert "the same command resumes" in line and "higher --wait" in line


@pytest.mark.parametrize("work", ["distributed.keep_alive()", "bar.update(1)"])
def test_long_work_of_one_rank_is_waited_for(place, work):
    """Twice as long as the limit, with a sign now and then."""
    what = f"""
        if rank == 0:
            with progress(total=120) as bar:
                for _ in range(120):
                    time.sleep(0.1)
                    {work}
        found = distributed.by_main(lambda: "decided")
        assert found == "decided" and distributed.all_gather(rank) == [0, 1]
    """
    done = run_script(place, TOGETHER.replace("{what}", what.strip()), WAIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "together again\n"


def test_the_limit_is_a_flag_of_the_stages_that_train(place):
    for stage in ("squeeze", "validate"):
        outcome = place.run(stage, wait=0)
        assert outcome.code == 2 and "--wait" in outcome.err
        assert place.run(stage, wait=60, epochs=1).code == 0


# --- one decides -----------------------------------------------------------------------------------------------------

# Rank 1 sees other files than rank 0, as on a network's file system that is late.
LATE = """
import os, sys
from pathlib import Path
from utils.run import entry, files
stage = sys.argv.pop(1)
exists, is_file, read_bytes, read_json = Path.exists, Path.is_file, Path.read_bytes, files.read_json
if os.environ["RANK"] == "1":
    {late}
import importlib
entry.run(importlib.import_module(f"{stage}.__main__").main)
"""


def late(place, stage, what, **changes):
    return run_script(place, LATE.replace("{late}", what), stage, *place.command(stage, **changes))


def unseen(ending):
    return f"Path.exists = lambda path: exists(path) and not path.name.endswith('{ending}')"


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_teacher_that_one_rank_does_not_see(place):
    assert launch(place, "squeeze", 2).returncode == 0
    done = late(place, "squeeze", unseen("squeezed.pth"))
    assert done.returncode == 0 and "is complete" in done.stdout, done.stderr


def test_a_finished_teacher_that_only_one_rank_sees(place):
    done = late(place, "squeeze", "Path.exists = lambda path: exists(path) or path.name == 'squeezed.pth'")
    assert done.returncode == 0 and (place / "squeezed.pth").exists(), done.stderr


def test_a_state_that_one_rank_does_not_see(place):
    """It is resumed from by all."""
    assert launch(place, "squeeze", 2, output=place / "whole.pth", epochs=6).returncode == 0
    half = """
import os, signal
from utils.run.resume import State
from utils.run import entry
save_if_due, seen = State.save_if_due, []
def dies(self, content):
    seen.append(1)
    if len(seen) == 8 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGTERM)
    save_if_due(self, content)
State.save_if_due = dies
from squeeze.__main__ import main
entry.run(main)
"""
    done = run_script(place, half, *place.command("squeeze", epochs=6))
    assert done.returncode != 0 and (place / ".squeezed.pth.state").exists() and "Traceback" not in done.stderr
    blind = """
    def reading(path):
        if path.name.endswith(".state"):
            raise FileNotFoundError(path)
        return read_bytes(path)
    Path.read_bytes = reading
    """
    done = late(place, "squeeze", blind.strip(), epochs=6)
    assert done.returncode == 0, done.stderr
    assert equal(weights(place / "squeezed.pth"), weights(place / "whole.pth"))


def test_results_that_one_rank_does_not_see(place):
    assert launch(place, "validate", 2).returncode == 0
    done = late(place, "validate", unseen(".json"))
    assert done.returncode == 0 and "seed 0 is complete" in done.stdout, done.stderr


def test_stored_labels_that_one_rank_sees_unfinished(place):
    """Those that were stored before, and those that this very command stores."""
    what = """
    def reading(path):
        found = read_json(path)
        return {**found, "finished": False} if Path(path).name == "index.json" else found
    files.read_json = reading
    """
    for _ in range(2):
        done = late(place, "validate", what.strip(), save_labels=place / "labels")
        assert done.returncode == 0, done.stderr
        for path in (place / "measured" / "results").glob("*.json"):
            path.unlink()


@pytest.mark.parametrize("stage, folder", [("squeeze", "train"), ("validate", "init")])
def test_ranks_that_see_other_images_do_not_train(place, stage, folder):
    what = f"""
    from utils.data import image_folder
    listed = image_folder._image_files
    image_folder._image_files = lambda root, *rest: listed(root, *rest)[: -1 if Path(root).name == "{folder}" else None]
    """
    done = late(place, stage, what.strip())
    assert done.returncode == 2 and "do not see the same images in --" in the_error(done)


def test_ranks_of_other_precision_do_not_train(place):
    what = 'sys.argv[sys.argv.index("fp32")] = "bf16"'
    done = late(place, "squeeze", what)
    assert done.returncode == 2 and "do not see the same settings" in the_error(done)
