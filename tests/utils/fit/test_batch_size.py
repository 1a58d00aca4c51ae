"""--batch-size auto: a finding holds for the work that it was made for, and for all ranks."""

import json
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch
from launching import ENV, LAUNCH

from conftest import ROOT
from utils.fit.batch_size import find_batch_size
from utils.run.device import Runtime

TRIES = {
    "squeeze": "squeeze.__main__.try_training_step",
    "ranking": "utils.fit.batch_size.try_evaluation",
    "recover": "recover.__main__.find_batch_size",
    "validate": "validate.trial.try_training_step",
}


def out_of_memory(above):
    def trial(images):
        trial.tried.append(images)
        if images > above:
            raise torch.OutOfMemoryError("CUDA out of memory")

    trial.tried = []
    return trial


def test_other_work_has_a_finding_of_its_own(tmp_path):
    little, much = out_of_memory(above=30), out_of_memory(above=1000)
    work = dict(network="a", size=32, precision="fp32", device="cpu")
    assert find_batch_size(96, 1, tmp_path / "out", little, **work) == 24, "96 with its quarter is too much, so is 48"
    for other in (dict(network="b"), dict(size=64), dict(precision="bf16"), dict(device="another")):
        assert find_batch_size(96, 1, tmp_path / "out", much, **{**work, **other}) == 96
    assert find_batch_size(64, 1, tmp_path / "out", much, **work) == 64
    assert much.tried == 4 * [120] + [80], "none of them inherits"
    little.tried.clear()
    assert find_batch_size(96, 1, tmp_path / "out", little, **work) == 24
    assert little.tried == [], "and the first one's is still there"
    assert [path.name for path in tmp_path.iterdir()] == [".out.batch-size"]


@pytest.mark.parametrize("noted", ["", "8\n", "{", "[1]", '{"a": "b"}', '{"a": {}}'])
def test_a_damaged_note_is_no_finding(tmp_path, noted):
    (tmp_path / ".out.batch-size").write_text(noted)
    assert find_batch_size(16, 1, tmp_path / "out", lambda images: None, network="a") == 16
    assert 16 in json.loads((tmp_path / ".out.batch-size").read_text()).values()


def test_processes_without_a_connection_take_what_was_noted_first(tmp_path):
    """As those of an array job, which share nothing but their files."""

    def slower(images):
        find_batch_size(8, 1, tmp_path / "out", out_of_memory(above=5), network="a")

    assert find_batch_size(8, 1, tmp_path / "out", slower, network="a") == 4


def test_the_kind_of_a_machine_is_its_device_and_precision():
    gpu = torch.device("cuda", 0)
    with mock.patch("torch.cuda.get_device_name", side_effect=["GPU A", "GPU B"]):
        kinds = [Runtime(gpu, "bf16", "off").kind, Runtime(gpu, "bf16", "off").kind]
    kinds += [Runtime(torch.device("cpu"), precision, "off").kind for precision in ("bf16", "fp32")]
    assert all(kinds.count(kind) == 1 for kind in kinds)


@pytest.mark.parametrize(
    "stage, changes",
    [
        ("squeeze", [dict(arch="conv2"), dict(input_size=18), dict(precision="bf16")]),
        ("ranking", [dict(teacher_path="other.pth"), dict(precision="bf16")]),
        ("recover", [dict(teacher_path="other.pth"), dict(precision="bf16")]),
        ("validate", [dict(student_arch="conv2"), dict(teacher_path="other.pth"), dict(precision="bf16")]),
    ],
)
def test_a_stage_tries_again_for_another_network_size_or_precision(place, monkeypatch, stage, changes):
    place.works("squeeze", output=place / "other.pth", arch="conv2")
    tried = []
    if stage == "recover":
        search = find_batch_size

        def searching(default, least, output, trial, **work):
            return search(default, least, output, lambda images: (tried.append(images), trial(images)), **work)

        monkeypatch.setattr(TRIES[stage], searching)
    else:
        module, _, name = TRIES[stage].rpartition(".")
        monkeypatch.setattr(TRIES[stage], lambda model, images, *rest: tried.append(images))
    line = dict(batch_size="auto", epochs=1, overwrite=True)
    if stage in ("ranking", "recover"):
        line.pop("epochs")
    if stage == "ranking":
        line |= dict(ranking_file=None)
    for change in [{}, *changes]:
        change = {name: place / value if str(value).endswith(".pth") else value for name, value in change.items()}
        for times in (1, 0):  # the same command again does not try
            tried.clear()
            place.works(stage, **line, **change)
            assert len(tried) == times, change


# --- ranks -----------------------------------------------------------------------------------------------------------

RANKS = """
import json, sys, torch
from utils.fit.batch_size import find_batch_size
from utils.run import distributed, entry
def main():
    out, default, limits = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    with distributed.process_group(torch.device("cpu")):
        rank, tried = distributed.get_rank(), []
        def trial(images):
            tried.append(images)
            if images > limits[rank]:
                raise torch.OutOfMemoryError("CUDA out of memory")
        found = find_batch_size(default, 2, out + "/out", trial, network="a")
        open(f"{out}/{rank}.json", "w").write(json.dumps([found, tried]))
entry.run(main)
"""


def on_ranks(folder: Path, default: int, limits: list[int]):
    script = folder / "script.py"
    script.write_text(RANKS)
    line = [*LAUNCH, "--nproc-per-node", str(len(limits)), str(script), str(folder), str(default), json.dumps(limits)]
    return subprocess.run(line, cwd=ROOT, text=True, capture_output=True, env={**ENV, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_each_rank_tries_its_share_and_all_agree_on_the_smallest(tmp_path):
    """Rank 1 has room for 21 images. Of 96 a rank has 32, with a quarter to spare 40; of 48 it has 16, with it 20."""
    for tried in ([40, 20], []):  # and again, by what is noted
        done = on_ranks(tmp_path, 96, [1000, 21, 1000])
        assert done.returncode == 0, done.stderr
        assert done.stdout == "--batch-size auto: 48\n"
        assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)] == 3 * [[48, tried]]


@pytest.mark.slow
def test_where_one_rank_has_room_for_nothing_all_end_with_one_line(tmp_path):
    done = on_ranks(tmp_path, 8, [1000, 1])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    assert line.startswith("error: out of memory even with --batch-size 2")
