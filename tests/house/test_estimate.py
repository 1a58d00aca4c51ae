"""Estimates: the work that is counted, by hand; what networks cost, counted by PyTorch; and that scripts print them."""

import contextlib
import io
import re
import sys
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import estimate, networks
from helpers import gray
from utils.data.datasets import SMALL_SIZE
from utils.nets import models
from utils.run.errors import UserError

CONV3 = 2 * 9 * (3 * 128 * 32**2 + 128 * 128 * 16**2 + 128 * 128 * 8**2)  # of an image of 32 pixels


def lines(*words):
    """Stage -> (hours, GiB, the rest)."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", ["benchmarks.estimate", *map(str, words)]), contextlib.redirect_stdout(said):
        estimate.main()
    head, *rest = said.getvalue().splitlines()
    form = r"  (\w+(?: \w+)?) +([\d.]+) (h|min) +([\d.]+) GiB   (.*)"
    found = [re.fullmatch(form, line) for line in rest]
    hours = {match[1]: float(match[2]) / (60 if match[3] == "min" else 1) for match in found}
    assert all((hours[match[1]] < 1) == (match[3] == "min") for match in found), "short ones in minutes"
    return head, {m[1]: (hours[m[1]], float(m[4]), m[5]) for m in found}


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch, size",
    [
        *(("conv3", 32), ("conv4_w64", 64), ("resnet18", 32), ("resnet18", 64), ("resnet18", 224), ("resnet34", 224)),
        *(("resnet50", 64), ("resnet101", 224), ("densenet121", 224), ("mobilenet_v2", 224), ("efficientnet_b0", 224)),
        *(("mobilenet_v2", 64), ("vgg11", 224), ("vit_b_16", 224)),
    ],
)
def test_what_a_network_costs(arch, size):
    with torch.device("meta"):
        network = models.build(arch, 1000, size, "cifar" if size <= SMALL_SIZE else "imagenet")
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(2, 3, size, size))
    found = networks.cost(arch, size)
    assert found.flops == pytest.approx(counter.get_total_flops() / 2, rel=0.15)
    if not arch.startswith("conv"):
        assert found.parameters == pytest.approx(sum(p.numel() for p in network.parameters()), rel=0.1)


def test_conv3_by_hand():
    assert networks.cost("conv3", 32).flops == CONV3
    assert networks.cost("conv3", 32).activations == 128 * (32**2 + 16**2 + 8**2)
    assert networks.cost("no_such_net", 32) is None


# --- stages ----------------------------------------------------------------------------------------------------------


def test_the_hours_of_every_stage_by_hand():
    head, found = lines(
        *"--dataset cifar10 --ipc 10 --iterations 1000 --round-iterations 125 --teacher-arch conv3".split(),
        *"--card A100 --tflops 0.001 --share 0.5 --seeds 2 --sets 3 --val-epochs 100".split(),
    )
    assert head.startswith("estimate for A100, 0.001 TFLOP/s (measured), of which 50% is reached, by one process;")
    rate, start = 0.5e9, 40
    # Rounds of 125: groups of 2, 2, 1, 1, 1, 1, 1 and 1 images a class, of 1000, 875, ... updates.
    updates = 10 * (2 * 1000 + 2 * 875 + 750 + 625 + 500 + 375 + 250 + 125)
    work = {
        "squeeze": 3 * 30 * 50000 * CONV3,
        "ranking": 50000 * CONV3,
        "recover": 2 * updates * CONV3,
        # Two seeds on three sets: forward and backward of the student, and the teacher; three tests.
        "validate": 6 * (100 * 100 * 4 + 3 * 10000) * CONV3,
    }
    assert found.keys() == work.keys()
    for stage, flops in work.items():
        assert found[stage][0] == pytest.approx((flops / rate + start) / 3600, abs=0.006), stage
    assert found["recover"][2] == f"{updates:,} updates of images, 100 at a time"


def test_what_a_method_needs_is_estimated():
    _, found = lines(*"--dataset cifar10 --method rded --card T4".split())
    assert "recover" not in found and found["ranking"][2] == "15,000 images", (
        "300 candidates of 10 classes, 5 crops each"
    )
    for ipc, images in ((10, 800), (50, 4000)):
        _, found = lines(*f"--dataset cifar10 --method mosaic --ipc {ipc} --card T4".split())
        assert found["ranking"][2] == f"{images:,} images", "twice the four tiles of each"
    _, found = lines(*"--dataset cifar10 --method edc --protocol edc --card T4 --teacher-arch conv3 resnet18".split())
    assert "statistics" in found and found["ranking"][2] == "0 images"


def test_baselines_are_scored_too():
    _, found = lines(*"--dataset cifar10 --method mosaic --baselines random herding k-center --card T4".split())
    assert found["ranking"][2] == "100,800 images", "two criteria look at all images, and one at none"


def test_a_stage_that_a_method_does_not_have_is_nothing_to_be_estimated():
    head, found = lines(*"--dataset cifar10 --method delt --stages statistics --card T4".split())
    assert head.startswith("estimate for T4") and not found


def test_several_methods_share_what_they_can():
    """300 candidates a class for cim, and 5 crops of each for rded; all images for delt, once.

    wmdd has barycenters and statistics of the classes, gvbsm other statistics.
    """
    given = "--dataset cifar10 --card T4 --tflops 0.001 --share 1 --teacher-arch conv3 conv1 --val-epochs 10 --seeds 1"
    _, found = lines(*given.split(), *"--method delt rded cim wmdd gvbsm --iterations-share 0.1 --labellers 1".split())
    stages = ["squeeze", "ranking", "statistics", "recover delt", "recover cim", "recover wmdd", "recover gvbsm"]
    assert list(found) == [*stages, "validate"]
    assert found["ranking"][2] == "68,000 images" and found["statistics"][2] == "50,000 images, 3 times"
    # Eight rounds of 50: groups of 2, 2, 1, 1, 1, 1, 1 and 1 images a class, of 400, 350, ... updates.
    assert found["recover delt"][2].startswith(f"{10 * (2 * 400 + 2 * 350 + 300 + 250 + 200 + 150 + 100 + 50):,} ")
    assert found["recover cim"][2].startswith(f"{100 * 20:,} ")
    # One teacher labels; a test costs a student three passes over 10,000 images.
    validate = 2 * (10 * 100 * 4 + 3 * 10000) * CONV3
    assert found["validate"][0] == pytest.approx((validate / 1e9 + 40) / 3600, rel=0.01)


def test_a_folder_is_counted(tmp_path):
    for number in range(5):
        gray(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", 9, size=16)
    gray(tmp_path / "val" / "a" / "0.png", 9, size=16)
    images = estimate.of_folder(tmp_path / "train", tmp_path / "val", None)
    assert images == estimate.Images(classes=2, size=16, train=5, test=1)
    _, found = lines("--dataset", "imagenet100", "--train-dir", tmp_path / "train", "--card", "A100")
    assert found["ranking"][2] == "5 images", "nobody published how many it has"
    with pytest.raises(UserError, match="imagenet100: how many images it has is not known; give --train-dir"):
        estimate.of_dataset("imagenet100", None, None, None)
    with pytest.raises(UserError, match="no such folder"):
        estimate.of_folder(tmp_path / "none", None, None)


@pytest.mark.parametrize(
    "flags, rate, width",
    [("fpu avx2 avx512_bf16", 420e9, 2), ("avx2", 176e9, 4), ("avx2 avx512_bf16 amx_bf16", 1480e9, 2), ("", 40e9, 4)],
)
def test_a_cpu_is_known_by_its_units(monkeypatch, flags, rate, width):
    monkeypatch.setattr(estimate, "_own_card", lambda: "")
    monkeypatch.setattr(estimate, "_cpu_flags", lambda: flags.split())
    monkeypatch.setattr(estimate, "job_cpus", lambda: 2)
    machine = estimate.machine_of(None, None, None)
    assert (machine.flops, machine.bytes, machine.gpu) == (rate, width, False)


@pytest.mark.parametrize("name, tflops", [("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("Tesla T4", 65)])
def test_a_card_is_known_by_its_name(monkeypatch, name, tflops):
    monkeypatch.setattr(estimate, "_own_card", lambda: name)
    assert estimate.machine_of(None, None, None).flops == tflops * 1e12
    with pytest.raises(UserError, match="--card Voodoo2: its rate is not known; give --tflops"):
        estimate.machine_of("Voodoo2", None, None)
    assert estimate.machine_of("Voodoo2", 3.0, None).flops == 3e12


@pytest.mark.parametrize(
    "name, gib",
    [
        ("NVIDIA GH200 480GB", 141),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA A100-PCIE-40GB", 40),
        ("Tesla V100-SXM2-32GB", 32),
        ("NVIDIA H100", 80),
    ],
)
def test_the_memory_of_a_card_that_is_sold_with_several(name, gib):
    assert estimate.machine_of(name, None, None).gib == gib


def test_a_card_whose_name_only_begins_alike_is_not_known():
    with pytest.raises(UserError, match="its rate is not known"):
        estimate.machine_of("NVIDIA RTX A1000 Laptop GPU", None, None)


def test_photos_are_taken_at_the_size_that_squeeze_takes(tmp_path):
    gray(tmp_path / "train" / "a" / "0.png", 9, size=400)
    assert estimate.of_folder(tmp_path / "train", None, None).size == 224


def test_a_card_that_is_too_small_is_said():
    machine = estimate.Machine("small", 1e12, 1.0, 4.0, 2, True)
    assert "(the card has 4: a smaller --batch-size)" in estimate.Stage("recover", 1.0, 3.5, "x").line(machine)
    assert "the card" not in estimate.Stage("recover", 1.0, 3.0, "x").line(machine)


@pytest.mark.parametrize("flag", ["ipc", "seeds", "labellers", "val-epochs", "tflops", "share", "iterations-share"])
def test_a_number_of_nothing_is_one_line(monkeypatch, capsys, flag):
    monkeypatch.setattr("sys.argv", ["estimate", "--dataset", "cifar10", f"--{flag}", "0"])
    with pytest.raises(SystemExit) as end:
        estimate.main()
    assert end.value.code == 2 and f"--{flag}" in capsys.readouterr().err.splitlines()[-1]
