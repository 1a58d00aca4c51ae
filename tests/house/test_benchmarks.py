"""The yardstick: that plain and ours are the same work, and that the comparison compares."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import material, pairs, plain, recover
from conftest import ROOT
from helpers import CPU, noise, recipe, small_net
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.batchnorm import BatchNormMatching
from utils.data.geometry import Geometry
from utils.nets.teacher import Teacher

MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.3, 0.2)


def test_one_step_of_plain_is_one_step_of_ours():
    # Uncropped images that are their own mirror images look alike in every view.
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images + images.flip(3) - 1
    labels = torch.arange(4)
    model = small_net()
    starts = [0, 0, 3, 0]
    theirs = plain.PlainRecovery(copy.deepcopy(model), images, labels, starts, (MEAN, STD), iterations=12)
    theirs.r_bn, theirs.min_crop = 0.05, 1.0
    geometry = Geometry(8, MEAN, STD, 4, None, "cifar")
    objective = BatchNormMatching(Teacher(model, "small", geometry, ""), r_bn=0.05, first_bn=10.0)
    settings = recipe(iterations=12, round_iterations=3, min_crop=1.0)
    engine = Engine(objective, geometry, EarlyLate(4, **settings.schedule), CPU, settings, steps=1)
    ours = Recovery(engine, Start(images, labels, starts), 0)
    assert theirs.step() == pytest.approx(ours.step().item(), rel=1e-4)
    # A mirrored view has the mirrored gradient. Adam's first step is the rate times the gradient's sign, near enough.
    found, expected = theirs.images(), ours.images()
    assert torch.equal(found[2], images[2]) and not torch.equal(found[0], images[0])
    same = [torch.isclose(found, view, atol=1e-3).float().mean().item() for view in (expected, expected.flip(3))]
    assert max(same) > 0.99


def test_plain_recovery_runs_by_hand(tmp_path, monkeypatch):
    for label in "ab":
        for position in range(2):
            noise(tmp_path / "init" / label / f"{position:03d}_x.png", position + 10 * ord(label))
    material.teacher(tmp_path / "t.pth", "conv3", 2, 8, "cifar")
    words = ["plain", *map(str, (tmp_path / "init", tmp_path / "t.pth", tmp_path / "syn"))]
    monkeypatch.setattr(sys, "argv", [*words, "--iterations", "8", "--round-iterations", "4", "--batch-size", "4"])
    plain.main()
    for path in sorted((tmp_path / "init").glob("*/*.png")):
        before = np.asarray(Image.open(path)).astype(int)
        after = np.asarray(Image.open(tmp_path / "syn" / path.relative_to(tmp_path / "init"))).astype(int)
        assert before.shape == after.shape and abs(before - after).mean() > 2


def test_counted_work():
    # conv3 at 32 pixels: three convolutions and a linear layer, forward and backward to the pixels, 100 images.
    products = 9 * (3 * 128 * 32**2 + 128 * 128 * 16**2 + 128 * 128 * 8**2) + 128 * 4 * 4 * 10
    assert recover.flops("conv3-32") == 100 * 2 * 2 * products


def test_a_network_knows_the_statistics_of_noise():
    model = material.network("conv3", 4, 16, "cifar")
    seen = []
    model.layers["norm"][2].register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    model(torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(5)))
    assert abs(seen[0].mean().item()) < 0.1 and seen[0].std().item() == pytest.approx(1, abs=0.15)


def recorder(path, name):
    def work():
        with open(path, "a") as file:
            file.write(name)

    return work


def failing():
    raise ValueError("no such work")


@pytest.mark.slow
def test_sides_work_in_turn(tmp_path):
    path = str(tmp_path / "order")
    found = pairs.compare(
        (recorder, dict(path=path, name="p")),
        (recorder, dict(path=path, name="o")),
        3,
        2,
        lambda: recorder(path, "|")(),
    )
    assert open(path).read() == "po" + "po|" * 3, "warm once, then in turn"
    assert len(found.ratios) == len(found.plain) == 3
    assert found.ratios == [a / b for a, b in zip(found.plain, found.ours)]
    assert min(found.plain_peak, found.ours_peak) > 5


@pytest.mark.slow
def test_a_side_that_fails_ends_the_comparison(tmp_path):
    with pytest.raises(SystemExit, match="error: .* ended before its work was done"):
        pairs.compare((recorder, dict(path=str(tmp_path / "order"), name="p")), (failing, {}), 3)


def test_a_comparison_in_words():
    words = str(pairs.Comparison([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], 500.4, 400.0))
    assert words == "plain 4000 ms, ours 2000 ms, ratio 2.00 (2.00 to 3.00) over 3 pairs; peak 500 and 400 MB"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, arguments, said",
    [
        (
            "winograd",
            ["--images", "2", "--pairs", "1"],
            r"^512 channels, 4 x 4, 2 images: direct \S+ ms, Winograd \S+ ms, ratio ",
        ),
        (
            "squeeze",
            ["--arch", "conv3", "--images", "40", "--pairs", "1", "--compile", "off"],
            r"^squeeze conv3, 40 images .* over 1 pairs",
        ),
        (
            "validate",
            [
                "--arch",
                "conv3",
                "--ipc",
                "2",
                "--batch-size",
                "10",
                "--test-images",
                "20",
                "--epochs",
                "1",
                "--pairs",
                "1",
                "--compile",
                "off",
            ],
            r"^student conv3, 300 epochs with 6 and 3 evaluations of 10,000 images, added up: plain ",
        ),
        (
            "recover",
            ["--case", "conv3-32", "--steps", "1", "--pairs", "1", "--compile", "off"],
            r"^step conv3-32, 100 images, .* over 1 pairs",
        ),
        (
            "recover",
            "--work methods --case conv3-32 --method gvbsm --steps 1 --pairs 1 --compile off".split(),
            r"^step conv3-32, 100 images, .*: delt \S+ ms, gvbsm \S+ m?s: .* times over 1 pairs",
        ),
        (
            "statistics",
            ["--arch", "conv3", "--images", "40", "--pairs", "1", "--compile", "off"],
            r"^statistics of per class, conv3, 40 images .* times over 1 pairs",
        ),
        (
            "ranking",
            ["--arch", "conv3", "--images", "40", "--pairs", "1", "--compile", "off"],
            r"^ranking conv3, 40 images of 32 px .* over 1 pairs",
        ),
        ("gpu", ["--help"], r"^usage: python -m benchmarks.gpu"),  # tests/house/test_gpu_table.py
        ("kills", ["--help"], r"^usage: python -m benchmarks.kills"),  # tests/house/test_ranks.py kills workers, too
        ("memory", ["--quick"], r"^\| selecting \| [\d,]+ \| \d+ \| \d+ \|$"),
        ("cluster", ["--images-per-second", "16.4"], r"batch 100: 500 units, .* more than 500 GPUs are of no use$"),
    ],
)
def test_each_benchmark_runs_and_says_what_it_found(module, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stdout, re.MULTILINE), done.stdout
