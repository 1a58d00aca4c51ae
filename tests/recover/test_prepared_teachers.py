"""recover with teachers of other kinds: their logits are those of the checkpoint, or nothing is written."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD
from helpers import scrambled
from recover.objectives import OBJECTIVES, Entry, batchnorm
from utils.nets import checkpoints, models
from utils.nets.frozen import Untouched
from utils.run.shared_work import SharedWork

LINE = dict(lr=0, iterations=1, round_iterations=0, batch_size=12, jitter=0, min_crop=1.0)


def save(place, arch, name="other.pth"):
    torch.manual_seed(2)
    network = scrambled(models.build(arch, 3, INPUT, "cifar"))
    facts = dict(arch=arch, stem="cifar", num_classes=3, classes=list(CLASSES), input_size=INPUT, mean=MEAN, std=STD)
    checkpoints.save(place / name, network, **{k: list(v) if isinstance(v, tuple) else v for k, v in facts.items()})
    return network


def mean_loss(place, network):
    """The mean of -log(score) of the initial images, whole, which 14 pixels of 16 need resized."""
    losses = []
    for label, name in enumerate(CLASSES):
        for path in sorted((place.init / name).iterdir()):
            pixels = np.asarray(Image.open(path).resize((INPUT, INPUT), Image.Resampling.BICUBIC)) / 255
            x = torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)[None]
            with torch.no_grad():
                losses += [-network(x).log_softmax(1)[0, label].item(), -network(x.flip(3)).log_softmax(1)[0, label]]
    return float(np.mean(losses))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["timm/mobilenetv3_small_050", "timm/regnetx_002"])
def test_activations_inside_batchnorm_stay(place, arch):
    network = save(place, arch)
    outcome = place.run("recover", teacher_path=place / "other.pth", r_bn=0, **LINE)
    assert outcome.code == 0, outcome.err
    [loss] = [float(value) for value in re.findall(r"loss ([\d.]+)", outcome.err)[-1:]]
    assert loss == pytest.approx(mean_loss(place, network), rel=0.2)
    assert json.loads((place.syn / "manifest.json").read_text())["finished"]


def test_a_teacher_without_batchnorm_needs_r_bn_0(place):
    save(place, "timm/nf_regnet_b0")
    outcome = place.run("recover", teacher_path=place / "other.pth", **LINE)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not place.syn.exists()
    assert "timm/nf_regnet_b0 has no BatchNorm" in outcome.err and "--r-bn 0" in outcome.err
    place.works("recover", teacher_path=place / "other.pth", r_bn=0, **LINE)


def test_a_network_that_is_not_the_teachers_is_one_error(place, monkeypatch):
    """As if a bare normalisation still came into the place of everything that is called BatchNorm."""
    save(place, "timm/mobilenetv3_small_050")
    monkeypatch.setattr(batchnorm, "is_plain", isinstance)
    outcome = place.run("recover", teacher_path=place / "other.pth", **LINE)
    assert outcome.code == 2 and outcome.err.count("error:") == 1 and "Traceback" not in outcome.err
    assert "timm/mobilenetv3_small_050: as prepared for cpu fp32" in outcome.err
    assert not list(place.syn.glob("*/*.png"))


@pytest.mark.slow
def test_each_of_several_teachers_is_compared(place, monkeypatch):
    """Each with its own normalisation; the second one is wrong."""
    save(place, "timm/mobilenetv3_small_050")
    both = dict(teacher_path=[place.teacher, place / "other.pth"])
    place.works("recover", syn_dir=place / "right", **both, **LINE)
    monkeypatch.setattr(batchnorm, "is_plain", isinstance)
    outcome = place.run("recover", **both, **LINE)
    assert outcome.code == 2 and "timm/mobilenetv3_small_050: as prepared" in outcome.err


@pytest.fixture
def compared(monkeypatch):
    """The images that networks are compared on: (N, 3, S, S) of each comparison."""
    found, of = [], Untouched.of
    monkeypatch.setattr(
        Untouched, "of", lambda network, images, runtime: found.append(images) or of(network, images, runtime)
    )
    return found


def test_it_is_compared_on_images_of_a_unit_that_was_taken(place, compared):
    """Another process is at work on the first unit, so on images of the second one."""
    line = {**LINE, "batch_size": 4}
    place.works("recover", syn_dir=place / "whole", **line)
    [first] = compared
    compared.clear()
    with pytest.MonkeyPatch.context() as patch:
        lock = SharedWork._lock
        patch.setattr(SharedWork, "_lock", lambda self, number: number > 0 and lock(self, number))
        place.works("recover", **line)
    [second] = compared
    assert {path.parent.name for path in place.syn.glob("*/*.png")} == {"moth", "zebra"}
    paths = sorted((place.init / "moth").iterdir())
    for image, path in zip(second, paths, strict=True):
        pixels = np.asarray(Image.open(path).resize((INPUT, INPUT), Image.Resampling.BILINEAR)) / 255
        expected = torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1)
        assert (image - expected).abs().max() < 0.02
    assert not torch.equal(first, second)


def test_where_nothing_is_left_no_network_is_copied_or_compared(place, compared, monkeypatch):
    place.works("recover", **LINE)
    (place.syn / "contact_sheet.png").unlink()
    compared.clear()

    def no_network(value, *more, deepcopy=copy.deepcopy):
        assert not any(isinstance(part, torch.nn.Module) for part in (value if isinstance(value, list) else [value]))
        return deepcopy(value, *more)

    monkeypatch.setattr(copy, "deepcopy", no_network)
    for _ in range(2):  # to draw the sheet again, and to do nothing
        place.works("recover", **LINE)
    assert not compared


def test_nameless_weights_are_compared_and_what_was_assumed_is_said_once(place, compared):
    weights = torch.load(place.teacher, weights_only=True)["model"]
    torch.save(weights, place / "bare.pth")
    line = dict(teacher_arch="conv3", input_size=INPUT, mean=MEAN, std=STD)
    said = place.works("recover", teacher_path=place / "bare.pth", **line, **LINE)
    assert said.count("assumed") == 1 and compared


def test_an_objective_that_holds_no_network_is_not_compared(place, monkeypatch):
    class Dark(batchnorm.Objective):
        def forward(self, batch):
            return batch.pixels.square().mean()

    monkeypatch.setitem(OBJECTIVES, "batchnorm", Entry(lambda teachers, settings: Dark(), ()))
    place.works("recover", **LINE)
    assert len(list(place.syn.glob("*/*.png"))) == 12
