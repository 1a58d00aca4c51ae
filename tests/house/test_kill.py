"""Faults caused for real: processes killed at random moments, full disks, folders that may not be written."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
import torch

from conftest import images
from helpers import disk

LINES = {
    "squeeze": dict(epochs=60, save_every=0),
    "ranking": dict(batch_size=1, criterion="medium"),
    "recover": dict(iterations=120, round_iterations=30, save_every=0, batch_size=4),
    "validate": dict(epochs=40, seeds=2, evaluations=2, save_every=0),
}
OUTPUT = {"squeeze": "output", "ranking": "output_dir", "recover": "syn_dir", "validate": "output_dir"}


def result(stage, place, name):
    """What must be the same however often the work was cut off."""
    if stage == "squeeze":
        return {key: tensor.tolist() for key, tensor in torch.load(place / name, weights_only=True)["model"].items()}
    if stage == "ranking":
        record = json.loads((place / f"{name}.csv.json").read_text())
        return (place / f"{name}.csv").read_bytes(), {**record, "seconds": 0}, images(place / name)
    if stage == "recover":
        manifest = json.loads((place / name / "manifest.json").read_text())
        return images(place / name), manifest["images"], manifest["finished"]
    [path] = (place / name / "results").glob("*.json")
    rows = (place / name / "results.csv").read_text().splitlines()
    return [{**seed, "seconds": 0} for seed in json.loads(path.read_text())["seeds"]], len(rows)


def line(stage, place, name):
    more = {"ranking_file": place / f"{name}.csv"} if stage == "ranking" else {}
    return {**LINES[stage], OUTPUT[stage]: place / name, **more}


# How far into a run a kill may come at most: the first part of a short one is all start.
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, kills, reach", [("recover", 50, 0.3), ("squeeze", 10, 0.3), ("ranking", 10, 1.0), ("validate", 10, 0.3)]
)
def test_killed_at_random_moments_the_result_is_the_same(place, stage, kills, reach):
    started = time.monotonic()
    place.works(stage, **line(stage, place, "whole"))
    whole, took = result(stage, place, "whole"), time.monotonic() - started
    generator = random.Random(0)
    killed = rounds = 0
    while killed < kills:
        name = f"cut{rounds}"
        while True:
            child = place.fork(stage, **line(stage, place, name))
            time.sleep(generator.uniform(0, reach * took))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                assert os.waitstatus_to_exitcode(status) == 0
                break
            killed += 1
            assert killed < 40 * kills, "it makes no progress"
        assert result(stage, place, name) == whole
        assert not list(place.root.rglob(".*")), "what killed processes left is removed"
        rounds += 1


@pytest.fixture
def small_disk(tmp_path):
    with disk(tmp_path / "disk", "size=16k") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", LINES)
def test_a_full_disk_is_one_line_and_the_same_command_resumes(place, small_disk, stage):
    place.works(stage, **line(stage, place, "whole"))
    (small_disk / "ballast").write_bytes(bytes(12 << 10))
    outcome = place.run(stage, **line(stage, place, "disk/cut"))
    assert outcome.code == 2 and "No space left" in outcome.err.splitlines()[-1] and outcome.err.count("error:") == 1
    assert "Traceback" not in outcome.err and not list(small_disk.rglob("*.partial*"))
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    place.works(stage, **line(stage, place, "disk/cut"))
    assert result(stage, place, "disk/cut") == result(stage, place, "whole")
