"""What goes wrong in the midst of work: memory, images, numbers, and folders that may not be written."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recover.starts
from conftest import COLOURS, ROOT, draw, images, snapshot
from helpers import disk, gray
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches, EvalBatches
from utils.fit.batch_size import find_batch_size
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory, run_batch

OUTPUT = {"squeeze": "output", "ranking": "output_dir", "recover": "syn_dir", "validate": "output_dir"}
STAGES = tuple(OUTPUT)


# --- memory -------------------------------------------------------------------------------------------------------

IN_LITTLE_MEMORY = """
import importlib, json, os, resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from conftest import Place

place = Place(Path(sys.argv[3]))
for stage in place.lines:
    importlib.import_module(f"{stage}.__main__")
import numpy; numpy.ones((64, 64)) @ numpy.ones((64, 64))  # its library wants memory of its own, or ends the process
has = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for stage, line in json.loads(sys.argv[4]):
    if os.fork():
        os.wait()
        continue
    resource.setrlimit(resource.RLIMIT_AS, (has + (900 << 20),) * 2)
    outcome = place.run(stage, **line)
    print(json.dumps([outcome.code, outcome.out + outcome.err]), flush=True)
    os._exit(0)
"""


@pytest.mark.slow
def test_out_of_memory_names_a_smaller_batch(place):
    """A process may take 900 MB beside its libraries; 12 images of 192 pixels take 225 MB in conv3's first layer."""
    for name, colour in COLOURS.items():
        draw(place.train / name, colour, 24, f"train {name}")
    wide, teacher = dict(input_size=192, epochs=1), dict(teacher_path=place / "wide.pth")
    place.works("squeeze", batch_size=2, output=place / "wide.pth", **wide)
    lines = {
        "squeeze": {**wide, "output": place / "x.pth"},
        "ranking": teacher,
        "recover": teacher,
        "validate": {**teacher, "epochs": 1},
    }
    # Far above what fits, and with room for what does: how much a convolution takes depends on the processor.
    large = {
        "squeeze": dict(batch_size=72),
        "ranking": dict(batch_size=72),
        "recover": dict(batch_size=12, ipc=4),
        "validate": dict(batch_size=12),
    }
    work = [(stage, {**lines[stage], **large[stage]}) for stage in STAGES]
    words = json.dumps(
        [
            (stage, {name: str(value) if isinstance(value, Path) else value for name, value in line.items()})
            for stage, line in work
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, str(ROOT), str(ROOT / "tests"), str(place.root), words],
        text=True,
        capture_output=True,
        cwd=ROOT,
        # Each thread's own heap would take address space, whenever the machine happens to run it.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(work), done.stderr
    for (_, line), (code, told) in zip(work, map(json.loads, done.stdout.splitlines())):
        assert "Traceback" not in told
        assert code == 2 and f"out of memory with --batch-size {line['batch_size']}" in told, told
        assert f"--batch-size {line['batch_size'] // 2}" in told and "auto" in told


def test_auto_takes_the_default_where_that_fits(tmp_path):
    tried = []
    assert find_batch_size(96, 1, tmp_path / "out", tried.append) == 96
    assert tried == [120], "a quarter to spare"
    assert find_batch_size(96, 1, tmp_path / "out", tried.append) == 96
    assert tried == [120], "the same command has the same batches, without another trial"
    assert find_batch_size(64, 1, tmp_path / "out", tried.append) == 64
    assert tried == [120, 80], "another one begins at its own default"


def test_auto_halves_down_to_the_least(tmp_path):
    tried = []

    def trial(images):
        tried.append(images)
        if images > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def wrong(images):
        raise RuntimeError("shape")

    assert find_batch_size(100, 5, tmp_path / "out", trial) == 5
    assert tried == [125, 63, 32, 15, 8, 7]
    with pytest.raises(UserError, match="even with --batch-size 6"):
        find_batch_size(100, 6, tmp_path / "other", trial)
    with pytest.raises(RuntimeError, match="shape"):
        find_batch_size(100, 6, tmp_path / "third", wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.batch-size"]


def test_only_auto_takes_less_of_a_batch_than_it_has():
    """A trial can pass and the work fail by a little, when other things have come to the memory meanwhile."""
    sizes = []

    def network(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise RuntimeError(
                f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {len(images)} bytes"
                if len(images) > 5
                else "could not create a primitive"
            )
        return images + 1

    images = torch.arange(11)
    assert run_batch(network, images, may_split=True).equal(images + 1)
    assert sizes == [11, 6, 3, 3, 5, 3, 2]
    with pytest.raises(UserError, match="--batch-size 11; give --batch-size 5, or --batch-size auto"):
        with explain_out_of_memory(11):
            run_batch(network, images)


def test_only_a_lack_of_memory_splits_a_batch():
    def network(images):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(4):
        run_batch(network, torch.arange(4), may_split=True)


# --- images -------------------------------------------------------------------------------------------------------


def test_an_image_that_is_damaged_meanwhile_is_named(tmp_path):
    """Read by worker processes, whose errors come with a traceback otherwise."""
    for number in range(6):
        gray(tmp_path / "a" / f"{number}.png", 50)
    folder = ImageFolder(tmp_path, "--train-dir")
    folder.check()
    (tmp_path / "a" / "3.png").write_bytes(b"gone bad")
    for workers in (0, 2):
        with pytest.raises(UserError) as error:
            list(EvalBatches(folder, 8, 2, workers).read([0, 1, 2]))
        assert str(error.value).startswith(str(tmp_path / "a" / "3.png")) and "\n" not in str(error.value)


def spoiling(monkeypatch, path, after):
    """The file vanishes when `after` images were read again after the check."""
    seen = []

    def spoils(read):
        def reads(*args):
            seen.append(args)
            if len(seen) == after:
                path.unlink(missing_ok=True)
            return read(*args)

        return reads

    monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(ImageFolder, "read", spoils(ImageFolder.read))
    monkeypatch.setattr(recover.starts, "read_rgb", spoils(recover.starts.read_rgb))


@pytest.mark.parametrize(
    "stage, image, after",
    [
        ("squeeze", "train/moth/moth3.png", 30),
        ("ranking", "train/zebra/zebra6.png", 5),
        ("recover", "init/zebra/zebra2.png", 5),
        ("validate", "init/moth/moth1.png", 14),
    ],
)
def test_an_image_that_vanishes_in_mid_run_is_named_and_the_same_command_resumes(
    place, monkeypatch, stage, image, after
):
    line = dict(workers=0, batch_size=4)
    content = (place / image).read_bytes()
    spoiling(monkeypatch, place / image, after)
    outcome = place.run(stage, **line)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert outcome.err.strip().splitlines()[-1].startswith(f"error: {place / image}: cannot be read (no such file)")
    monkeypatch.undo()
    (place / image).write_bytes(content)
    place.works(stage, **line)


def test_a_killed_reader_is_said(tmp_path):
    gray(tmp_path / "a" / "x.png", 1)
    folder = ImageFolder(tmp_path, "it")
    with pytest.raises(UserError, match="--workers 1"):
        list(AugmentedBatches(folder, lambda image: os.kill(os.getpid(), 9), 2).stream(1, 1, 0))


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage, line, words",
    [
        ("squeeze", dict(lr=1e30, save_every=0), ["squeeze: loss is", "epoch 1, step", "a smaller --lr"]),
        (
            "validate",
            dict(lr=1e30, save_every=0, epochs=4),
            ["conv3 seed 0: loss is", "epoch", "step", "a smaller --lr"],
        ),
        ("recover", dict(r_bn=1e38, save_every=0), ["loss is", "iteration 1 of unit 0", "--lr than 0.25"]),
    ],
)
def test_a_loss_that_is_no_number_stops_and_leaves_nothing_bad(place, stage, line, words):
    outcome = place.run(stage, **line)
    assert outcome.code == 2 and all(word in outcome.err for word in words), outcome.err
    for path in place.root.rglob("*.state"):
        saved = torch.load(io.BytesIO(path.read_bytes()[65:]), weights_only=True)["content"]
        tensors = [value for value in saved.get("model", {}).values()] + list(saved.get("pixels", []))
        assert all(torch.isfinite(tensor.float()).all() for tensor in tensors)
    assert not images(place.syn) and not (place / "squeezed.pth").exists() and not list(place.root.rglob("results.csv"))


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path):
    """A disk that was mounted for reading only."""
    with disk(tmp_path / "sealed", "size=1m,ro") as folder:
        yield folder


@pytest.mark.parametrize("stage", STAGES)
def test_an_output_that_may_not_be_written_is_said_before_any_work(place, sealed, stage):
    line = {OUTPUT[stage]: sealed / "out"}
    before = snapshot(place / "train")
    outcome = place.run(stage, **line)
    assert outcome.code == 2 and str(sealed) in outcome.err and "Traceback" not in outcome.err
    assert "images" not in outcome.out and snapshot(place / "train") == before


def test_stages_read_with_workers_by_default_where_the_images_stay_on_disk(tmp_path):
    gray(tmp_path / "a" / "x.png", 1)
    folder = ImageFolder(tmp_path, "it")

    def workers(asked):
        return AugmentedBatches(folder, lambda image: image, asked).workers

    assert workers(None) > 0 and workers(0) == 0
    folder.load()
    assert workers(None) == 0 or torch.cuda.is_available()
