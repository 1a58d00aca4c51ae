"""Each stage on a GPU, at small size, as users run it; and none of it where a CPU was asked for."""

import json
import subprocess
import sys

import pytest
import torch

from conftest import ROOT, images
from on_gpu import DEVICE, alone, gpu, needs_gpu
from squeeze.augment import batches_of
from utils.data.image_folder import ImageFolder
from utils.fit.batch_size import find_batch_size
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory, run_batch

pytestmark = needs_gpu


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_stage(place, precision):
    line = dict(device=DEVICE, precision=precision)
    with gpu(precision, tf32=True):
        for name in ("one", "same"):
            place.works("squeeze", output=place / f"{name}.pth", workers=2, **line)
            place.works("ranking", output_dir=place / f"{name} selected", ranking_file=place / f"{name}.csv", **line)
            place.works("recover", syn_dir=place / name, **line)
        said = place.works("validate", syn_dir=place / "one", workers=2, **line)
    assert f"{DEVICE}:0 {precision}" in said
    one, same = weights(place / "one.pth"), weights(place / "same.pth")
    assert all(torch.equal(one[name], same[name]) for name in one), "same command, same bytes"
    assert (place / "one.csv").read_bytes() == (place / "same.csv").read_bytes()
    assert images(place / "one") == images(place / "same") and len(images(place / "one")) == 12
    manifest = json.loads((place / "one" / "manifest.json").read_text())
    assert manifest["finished"] and 1 < manifest["peak_memory_mb"] < 4000, "of the GPU, not of the process"
    [result] = (place / "measured" / "results").glob("*.json")
    assert json.loads(result.read_text())["seeds"][0]["top1"] >= 0


@pytest.mark.parametrize("stage", ["recover", "validate"])
def test_other_work_of_the_stages(place, stage):
    """Statistics, features and stored labels, and kernels that are chosen by time."""
    line = dict(device=DEVICE, deterministic="off")
    with gpu(tf32=True):
        if stage == "validate":
            place.works("validate", save_labels=place / "labels", top_k=2, **line)
            place.works("validate", load_labels=place / "labels", teacher_path=None, output_dir=place / "b", **line)
            return
        place.works("ranking", criterion="k-center", ranking_file=None, **line)
        words = [f"--teacher-path={place.teacher}", f"--train-dir={place.train}", "--per-class", "--device", DEVICE]
        outcome = place.start("squeeze.statistics", *words, f"--output={place / 's.safetensors'}")
        assert outcome.code == 0, outcome.err
        place.works("recover", method="edc", statistics=place / "s.safetensors", round_iterations=None, **line)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_a_compiled_stage(place, stage):
    outcome = place.spawn(stage, device=DEVICE, precision="auto", compile="on")
    assert outcome.code == 0, outcome.err
    assert "torch.compile failed" not in outcome.out


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_a_stage_on_the_cpu_starts_no_context(place, stage):
    code = (
        "import atexit, os, runpy, sys, torch\n"
        "def check():\n"
        "    if torch.cuda.is_initialized() or torch.cuda.device_count(): os._exit(9)\n"
        f"atexit.register(check)\nsys.argv = ['{stage}', *sys.argv[1:]]\n"
        f"runpy.run_module('{stage}', run_name='__main__', alter_sys=True)\n"
    )
    words = place.command(stage, workers=0)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_memory_that_is_not_there():
    alone("import test_stages_on_gpu as t; t.halved()")


def halved():
    """In a process of its own, as a fraction of the card's memory is allowed: what earlier tests keep counts, too.

    Batches are halved, or the size that was tried is said.
    """
    piece = 256 << 20  # bytes that the work with an image takes

    def needs(images):
        return torch.zeros(len(images) * piece, dtype=torch.uint8, device=DEVICE)[: len(images)].clone()

    with gpu():
        torch.cuda.set_per_process_memory_fraction(4.5 * piece / torch.cuda.mem_get_info()[1])
        assert len(run_batch(needs, torch.zeros(8), may_split=True)) == 8
        with pytest.raises(UserError, match="out of memory with --batch-size 8; give --batch-size 4"):
            with explain_out_of_memory(8):
                needs(torch.zeros(8))


def test_a_batch_size_that_fits(tmp_path):
    piece = 256 << 20
    with gpu() as runtime:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(4.5 * piece / torch.cuda.mem_get_info()[1])
        try:
            size = find_batch_size(
                12, 1, tmp_path / "x", lambda n: torch.zeros(n * piece, dtype=torch.uint8, device=runtime.device)
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert size == 3, "with a quarter more it takes four pieces; six take eight"


@pytest.mark.parametrize("padding", [0, 4])
def test_images_are_cropped_on_the_gpu_as_on_the_cpu(place, padding):
    """And the host does not wait for any of it."""
    folder = ImageFolder(place.train, "--train-dir")
    folder.load()
    with gpu() as runtime:
        here, there = (batches_of(folder, 16, padding, device) for device in (torch.device("cpu"), runtime.device))
        keys = list(here.schedule(batch_size=8, epochs=2).keys(("x",)))
        there[keys[0]]
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = [there[key] for key in keys]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for batch, key in zip(found, keys, strict=True):
            assert all(tensor.device.type == "cuda" for tensor in batch)
            assert all(torch.equal(own.cpu(), expected) for own, expected in zip(batch, here[key]))
