"""squeeze.barycenters as its users meet it: one file of a class's points, whatever interrupts the work."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from launching import ENV, LAUNCH
from PIL import Image
from torch.nn.functional import conv2d

from conftest import CLASSES, INPUT, MEAN, PIXELS, ROOT, STD, snapshot
from squeeze import barycenters, transport
from utils.nets import statistics
from utils.run.seeds import stream_seed
from utils.run.stopwatch import Stopwatch

ot = pytest.importorskip("ot")


def line(place, output="points.safetensors", **changes):
    flags = dict(train_dir=place.train, teacher_path=place.teacher, output=place / output, ipc=2)
    flags |= dict(device="cpu", precision="fp32", compile="off", **changes)
    words = []
    for name, value in flags.items():
        words += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])] if value is not None else []
    return words


def run(place, **changes):
    return place.start("squeeze.barycenters", *line(place, **changes))


def works(place, **changes):
    outcome = run(place, **changes)
    assert outcome.code == 0, outcome.err
    return outcome.out


def features(place, name):
    """What the last layer of the teacher sees of a class's images: (n, D) float64, computed in the plainest way."""
    weights = torch.load(place.teacher, weights_only=True)["model"]
    start, batch = (PIXELS - INPUT) // 2, []
    for file in sorted((place.train / name).iterdir()):
        pixels = np.asarray(Image.open(file).convert("RGB")) / 255
        batch.append((pixels[start : start + INPUT, start : start + INPUT] - MEAN) / STD)
    x = torch.tensor(np.stack(batch)).permute(0, 3, 1, 2)
    for d in range(3):
        norm = {k: weights[f"layers.norm.{d}.{k}"].double() for k in ("weight", "bias", "running_mean", "running_var")}
        x = conv2d(x, weights[f"layers.conv.{d}.weight"].double(), weights[f"layers.conv.{d}.bias"].double(), padding=1)
        scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()
        x = (x - norm["running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm["bias"].view(-1, 1, 1)
        x = torch.nn.functional.avg_pool2d(x.relu(), 2)
    return x.flatten(1).numpy()


def test_each_class_has_the_barycenter_that_pot_finds(place):
    works(place, seed=3)
    found = statistics.read(place / "points.safetensors")
    assert found.settings["classes"] == list(CLASSES) and found.settings["ipc"] == 2
    for label, name in enumerate(CLASSES):
        own = features(place, name)
        start = torch.Generator().manual_seed(stream_seed(3, "barycenter", name))
        start = torch.randn(2, own.shape[1], generator=start, dtype=torch.float64).numpy()
        expected = ot.lp.free_support_barycenter([own], [ot.unif(len(own))], start)
        np.testing.assert_allclose(found.tensors["points"][label], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.tensors["weights"], torch.full((3, 2), 0.5))


def test_each_class_starts_from_its_own_draw_of_the_seed(place, monkeypatch):
    """Whether or not another start would come to the same points."""
    starts = []

    def found(features, start, learn_weights):
        starts.append(start)
        return features[: len(start)], np.full(len(start), 0.5)

    monkeypatch.setattr("squeeze.barycenters.barycenter", found)
    works(place, seed=3)
    for name, start in zip(CLASSES, starts, strict=True):
        own = torch.Generator().manual_seed(stream_seed(3, "barycenter", name))
        assert np.array_equal(start, torch.randn(start.shape, generator=own, dtype=torch.float64).numpy())


def test_one_point_is_the_mean_of_the_class(place):
    works(place, ipc=1)
    points = statistics.read(place / "points.safetensors").tensors["points"]
    means = np.stack([features(place, name).mean(0) for name in CLASSES])
    np.testing.assert_allclose(points[:, 0], means, rtol=1e-3, atol=1e-4)


def test_learned_weights(place):
    said = works(place, ipc=3, learn_weights=True)
    weights = statistics.read(place / "points.safetensors").tensors["weights"]
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights > 0).all() and weights.std() > 0.01 and "weights from" in said


def test_the_same_command_finds_its_work_done_and_another_one_is_refused(place):
    works(place)
    before = snapshot(place.root)
    assert "is complete" in works(place)
    assert snapshot(place.root) == before
    for changed, name in ((dict(ipc=3), "ipc"), (dict(seed=1), "seed"), (dict(learn_weights=True), "learn_weights")):
        outcome = run(place, **changed)
        assert outcome.code == 2 and f"{name}:" in outcome.err and outcome.err.count("\n") == 1
    works(place, ipc=3, overwrite=True)
    assert statistics.read(place / "points.safetensors").tensors["points"].shape[1] == 3


def test_learned_points_of_rounds_that_ended_early_are_another_run(place):
    works(place, learn_weights=True)
    path = place / "points.safetensors"
    found = statistics.read(path)
    settings = {name: value for name, value in found.settings.items() if name != "rounds"}  # as the version before
    statistics.write(path, found.tensors, settings, [], 1.0)
    outcome = run(place, learn_weights=True)
    assert outcome.code == 2 and "rounds:" in outcome.err and "--overwrite" in outcome.err


def test_other_images_under_the_same_names_are_another_run(place):
    works(place)
    first, second = sorted((place.train / "ant").iterdir())[:2]
    shutil.copy(first, second)
    outcome = run(place)
    assert outcome.code == 2 and "images:" in outcome.err


@pytest.mark.parametrize("done", [1, 2, 3])
def test_killed_after_some_classes_it_goes_on_to_the_same_bytes(place, done):
    works(place, output="whole.safetensors")
    child = os.fork()
    if child == 0:
        calls, found = [], transport.barycenter

        def dying(*args):
            calls.append(1)
            if len(calls) > done:
                os.kill(os.getpid(), signal.SIGKILL)
            return found(*args)

        barycenters.barycenter = dying
        barycenters.write = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        run(place)
        os._exit(70)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(place.root.glob(".points.safetensors.parts/*.json"))) == done
    computed = []
    found = transport.barycenter
    barycenters.barycenter = lambda *args: computed.append(1) or found(*args)
    try:
        works(place)
    finally:
        barycenters.barycenter = found
    assert len(computed) == len(CLASSES) - done
    assert (place / "points.safetensors").read_bytes() == (place / "whole.safetensors").read_bytes()
    assert not list(place.root.glob(".*"))


def test_the_seconds_are_those_of_all_classes_whatever_interrupts_them(place, monkeypatch):
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 2.5)  # of a class
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(barycenters, "write", lambda *_: 1 / 0)
        run(place)
    works(place)
    told = json.loads(statistics.seconds_path(place / "points.safetensors").read_text())
    assert told == {"seconds": 2.5 * len(CLASSES)}


@pytest.mark.slow
def test_processes_share_the_classes(place):
    works(place, output="one.safetensors")
    command = [*LAUNCH, "--nproc-per-node", "2", "-m", "squeeze.barycenters", *line(place)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert (place / "points.safetensors").read_bytes() == (place / "one.safetensors").read_bytes()
    assert not list(place.root.glob(".*"))


def test_without_pot_it_says_so_before_any_work(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    before = snapshot(place.root)
    outcome = run(place)
    assert outcome.code == 2 and "requirements-methods.txt" in outcome.err and outcome.err.count("\n") == 1
    assert snapshot(place.root) == before


@pytest.mark.parametrize("changes", [dict(output="points.pth"), dict(output="train/points.safetensors"), dict(ipc=0)])
def test_arguments_that_cannot_be(place, changes):
    before = snapshot(place.root)
    outcome = run(place, **changes)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert snapshot(place.root) == before


def test_a_folder_is_no_file_to_write(place):
    (place / "points.safetensors").mkdir()
    outcome = run(place)
    assert outcome.code == 2 and "name a .safetensors file" in outcome.err and outcome.err.count("\n") == 1


def test_a_teacher_of_other_classes_is_refused(place):
    shutil.rmtree(place.train / "zebra")
    outcome = run(place)
    assert outcome.code == 2 and "zebra" in outcome.err and not (place / "points.safetensors").exists()
