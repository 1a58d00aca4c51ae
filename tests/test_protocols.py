"""Named protocols: what they are, that a flag beside one wins, and that the result says so."""
import argparse
import json

import pytest
import torch

from conftest import CLASSES
from utils import models
from utils.files import UserError
from validate.protocols import DELT, PROTOCOLS, named, resolve
from validate.train import learning_rate


def flags(**given):
    return argparse.Namespace(**{**dict.fromkeys(DELT), **given})


def resolved(name, size=32, **given):
    return resolve(named(name, flags(**given))[1], "resnet18", 10, 10, 100, size, 3)


def test_the_published_protocols():
    delt, rded, sre2l, hard = (resolved(name) for name in ("delt", "rded", "sre2l", "hard"))
    for protocol in (delt, rded, sre2l):
        assert (protocol.epochs, protocol.labels, protocol.mix, protocol.temperature, protocol.lr, protocol.weight_decay) \
            == (300, "soft", "cutmix", 20, 0.001, 0.01)
    assert (delt.rand_augment, delt.min_scale, delt.batch_size, delt.lr_schedule) == ("rand-m6-n2-mstd1.0", 0.25, 50, "half-cosine")
    assert (rded.rand_augment, rded.shuffle_patches, rded.min_scale, rded.batch_size) == ("none", 1, 1, 50)
    assert (sre2l.rand_augment, sre2l.min_scale, sre2l.batch_size, sre2l.lr_schedule) == ("none", 0.08, 100, "cosine")
    assert {**vars(hard), "labels": "soft"} == vars(delt)
    large = resolved("rded", 224)
    assert (large.shuffle_patches, large.min_scale) == (2, 0.5)


def test_without_augmentation_nothing_is_drawn():
    plain = resolved("noaug")
    assert (plain.rand_augment, plain.mix, plain.min_scale, plain.max_scale, plain.flip, plain.temperature) \
        == ("none", "none", 1, 1, 0, 20)


@pytest.mark.parametrize("name, given, title", [
    ("delt", {}, "delt"), ("rded", {}, "rded"), ("delt", {"epochs": 300}, "delt"),
    ("delt", {"epochs": 5}, "delt epochs=5"), ("rded", {"lr": 0.1, "epochs": 5}, "rded epochs=5 lr=0.1"),
    ("delt", {"labels": "hard"}, "hard"), ("hard", {"labels": "soft"}, "delt"),
    ("delt", {"labels": "hard", "epochs": 5}, "delt epochs=5 labels=hard")])
def test_a_flag_wins_and_is_recorded(name, given, title):
    found, chosen = named(name, flags(**given))
    assert found == title
    assert chosen == {**PROTOCOLS[name], **given}


@pytest.mark.parametrize("mix, temperature", [("cutmix", 20), ("mixup", 4), ("none", 20)])
def test_the_temperature_follows_the_mix(mix, temperature):
    assert resolved("delt", mix=mix).temperature == temperature
    assert resolved("delt", mix=mix, temperature=7.0).temperature == 7


def test_schedules():
    # Half of a cosine ends at (1 + cos(pi / 2)) / 2 = 1/2, a whole one at 0.
    assert learning_rate(0, 10, "cosine") == learning_rate(0, 10) == 1
    assert learning_rate(5, 10, "cosine") == pytest.approx(0.5)
    assert learning_rate(10, 10, "cosine") == pytest.approx(0)
    assert learning_rate(10, 10) == pytest.approx(0.5)


def test_the_result_names_protocol_and_settings(place):
    place.works("validate", protocol="rded", epochs=1, lr=0.01)
    [path] = (place / "measured" / "results").glob("*.json")
    stored = json.loads(path.read_text())
    assert stored["protocol"] == "rded epochs=1 lr=0.01"
    assert stored["settings"]["lr"] == 0.01 and stored["settings"]["rand_augment"] == "none"
    assert stored["arguments"]["protocol"] == ["rded"]


def test_sets_of_different_size_are_not_compared(place):
    outcome = place.run("validate", syn_dir=[place.init, place.train], method=["a", "b"], epochs=1)
    assert outcome.code == 2 and "--ipc 4" in outcome.err and "12" in outcome.err and "21" in outcome.err
    assert not (place / "measured").exists()


@pytest.mark.parametrize("arch", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"])
def test_timm_networks_take_images_of_the_size(arch):
    model = models.build(arch, len(CLASSES), 32, "cifar").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, len(CLASSES))


def test_a_timm_student(place):
    place.works("validate", student_arch="timm/resnet10t", epochs=1, input_size=14)
    [path] = (place / "measured" / "results").glob("*.json")
    assert json.loads(path.read_text())["student"] == "timm/resnet10t"


@pytest.mark.parametrize("arch", ["timm/", "timm/no_such_net", "timm/resnet1800"])
def test_an_unknown_timm_network(arch):
    with pytest.raises(UserError, match="timm"):
        models.build(arch, 3, 32, "cifar")
