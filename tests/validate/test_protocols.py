"""Named protocols: what they stand for, what follows from the student and the set, and that given flags win."""

import json

import pytest

from utils.run.registry import with_changes
from validate.protocols import PROTOCOLS, SetFacts, recipes, resolve, said


def resolved(name, arch="resnet18", facts=SetFacts(10, 10, 100, 32), **given):
    """Protocol `name` with given flags, by default for a ResNet-18 on CIFAR-10 with 10 images a class."""
    return resolve(with_changes(PROTOCOLS, name, given)[1], arch, facts, 3)


def test_delts_protocol():
    """Section 4.1 of the paper."""
    delt = resolved("delt")
    assert (delt.epochs, delt.batch_size, delt.labels, delt.loss, delt.temperature) == (300, 50, "soft", "kl", 20)
    assert (delt.optimizer, delt.lr, delt.weight_decay, delt.lr_schedule) == ("adamw", 0.001, 0.01, "half-cosine")
    assert (delt.mix, delt.rand_augment, delt.min_scale, delt.max_scale) == ("cutmix", "rand-m6-n2-mstd1.0", 0.25, 1)
    assert (delt.shuffle_patches, delt.flip, delt.weight_average) == (1, 0.5, 0)


def test_rdeds_protocol_crops_at_least_a_tile_and_shuffles_the_tiles():
    small, large = (resolved("rded", facts=SetFacts(10, 10, 100, size)) for size in (64, 224))
    assert (small.shuffle_patches, small.min_scale) == (1, 1), "images of 64 pixels and less are not tiled"
    assert (large.shuffle_patches, large.min_scale) == (2, 0.5)
    assert small.rand_augment == large.rand_augment == "none"
    assert resolved("rded", max_scale=0.5).min_scale == 0.5, "unless no crop may be so large"
    assert (small.epochs, small.loss, small.temperature, small.mix, small.batch_size) == (300, "kl", 20, "cutmix", 50)


def test_rd3s_protocol():
    """RD3: 400 epochs of Adam in batches of 50, with RDED's augmentation, for all."""
    for classes, size in ((10, 32), (1000, 224)):
        facts = SetFacts(classes, 10, 10 * classes, size)
        rd3, rded = resolved("rd3", arch="mobilenet_v2", facts=facts), resolved("rded", facts=facts)
        assert (rd3.epochs, rd3.batch_size, rd3.optimizer, rd3.lr, rd3.weight_decay) == (400, 50, "adam", 0.001, 0)
        assert (rd3.lr_schedule, rd3.loss, rd3.labels) == ("cosine", "kl", "soft")
        view = ("mix", "rand_augment", "shuffle_patches", "min_scale", "max_scale", "flip", "temperature")
        assert all(getattr(rd3, name) == getattr(rded, name) for name in view)


@pytest.mark.parametrize(
    "dataset, classes, ipc, expected",
    [
        ("imagenet1k", 1000, 10, (16, 300, 0.001, "half-cosine")),
        ("imagenet1k", 1000, 29, (16, 300, 0.001, "half-cosine")),
        ("imagenet1k", 1000, 30, (16, 300, 0.001, "cosine")),
        ("imagenet1k", 1000, 50, (16, 300, 0.001, "cosine")),
        ("tinyimagenet", 200, 1, (16, 1000, 0.001, "half-cosine")),
        ("tinyimagenet", 200, 50, (16, 300, 0.001, "cosine")),
        ("cifar100", 100, 1, (16, 1000, 0.0005, "half-cosine")),
        ("cifar100", 100, 9, (16, 1000, 0.0005, "half-cosine")),
        ("cifar100", 100, 10, (16, 1000, 0.001, "half-cosine")),
        ("cifar100", 100, 50, (16, 1000, 0.001, "cosine")),
        ("cifar10", 10, 10, (10, 300, 0.001, "half-cosine")),
        ("imagenette", 10, 1, (10, 300, 0.0005, "half-cosine")),
        ("imagenette", 10, 10, (10, 300, 0.0005, "cosine")),
        ("imagenette", 10, 29, (10, 300, 0.0005, "cosine")),
        ("imagenette", 10, 50, (10, 300, 0.0005, "half-cosine")),
        ("imagewoof", 10, 29, (10, 300, 0.0005, "cosine")),
        ("imagewoof", 10, 30, (10, 300, 0.001, "half-cosine")),
        ("imagewoof", 10, 50, (10, 300, 0.001, "half-cosine")),
        (None, 3, 10, (10, 300, 0.001, "half-cosine")),
    ],
)
def test_fadrms_protocol(dataset, classes, ipc, expected):
    """Its code for ResNet-18."""
    found = resolve(recipes(dataset)["fadrm"], "resnet18", SetFacts(classes, ipc, classes * ipc, 64), 3)
    assert (found.batch_size, found.epochs, found.lr, found.lr_schedule) == expected
    assert (found.accumulate, found.teacher_statistics, found.temperature, found.loss) == (2, "batch", 20, "kl")
    assert (found.optimizer, found.mix, found.rand_augment, found.min_scale) == ("adamw", "cutmix", "none", 0.08)


def test_sre2ls_protocol_has_large_batches_and_ends_at_0():
    """Section 4.1, by FKD: batches of 1024, as far as the set has so many images."""
    small, large = (resolved("sre2l", facts=SetFacts(1000, ipc, 1000 * ipc, 224)) for ipc in (1, 50))
    assert (small.batch_size, large.batch_size) == (1000, 1024)
    assert (large.lr_schedule, large.rand_augment, large.min_scale, large.temperature) == ("cosine", "none", 0.08, 20)
    assert large.accumulate == 1
    for dataset, facts in {
        "imagenet1k": SetFacts(1000, 50, 50_000, 224),
        "tinyimagenet": SetFacts(200, 50, 10_000, 64),
    }.items():
        halves = resolve(recipes(dataset)["sre2l"], "resnet18", facts, 3)
        assert (halves.batch_size, halves.accumulate) == (1024, 2), "BatchNorm sees 512"


def test_cdas_protocol_is_that_with_its_own_batch():
    facts = SetFacts(1000, 50, 50_000, 224)
    sre2l, cda = (vars(resolved(name, facts=facts)) for name in ("sre2l", "cda"))
    assert {name: cda[name] for name in cda if cda[name] != sre2l[name]} == {"batch_size": 128}


def test_hard_labels_differ_in_what_is_compared_alone():
    hard, delt = vars(resolved("hard")), vars(resolved("delt"))
    assert {name for name in hard if hard[name] != delt[name]} == {"labels", "loss", "temperature"}
    assert (hard["labels"], hard["loss"], hard["temperature"]) == ("hard", "ce", 1)


def test_without_augmentation_nothing_is_drawn():
    plain = resolved("noaug")
    assert (plain.rand_augment, plain.mix, plain.temperature) == ("none", "none", 20)
    assert (plain.min_scale, plain.max_scale, plain.flip) == (1, 1, 0)
    assert resolved("noaug", loss="ce").temperature == 1 and resolved("noaug", mix="mixup").temperature == 4


@pytest.mark.parametrize(
    "classes, ipc, batch",
    [
        (10, 1, 10),
        (10, 10, 50),
        (10, 20, 50),
        (10, 30, 100),
        (10, 50, 100),
        (10, 100, 100),
        (100, 1, 20),
        (100, 10, 100),
        (100, 50, 200),
        (1000, 1, 20),
        (1000, 10, 100),
        (1000, 50, 200),
        (200, 1, 20),
        (200, 10, 100),
        (200, 50, 200),
        # Never more than the set:
        (3, 1, 3),
        (2, 10, 20),
        (2, 30, 60),
    ],
)
def test_default_batch_size(classes, ipc, batch):
    assert resolved("delt", facts=SetFacts(classes, ipc, classes * ipc, 32)).batch_size == batch
    assert resolved("delt", facts=SetFacts(classes, ipc, classes * ipc, 32), batch_size=2).batch_size == 2


@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_tiny_imagenet_has_a_batch_of_its_own(ipc):
    """100, as RDED's code has it for the data set; other sets of 200 classes have that of their IPC."""
    facts = SetFacts(200, ipc, 200 * ipc, 64, "tinyimagenet")
    assert resolved("delt", facts=facts).batch_size == 100
    assert resolved("delt", facts=facts, batch_size=7).batch_size == 7
    assert (
        resolved("delt", facts=SetFacts(10, ipc, 10 * ipc, 32, "cifar10")).batch_size == {1: 10, 10: 50, 50: 100}[ipc]
    )


@pytest.mark.parametrize(
    "arch, lr",
    [
        ("resnet18", 0.001),
        ("resnet50", 0.001),
        ("resnet101", 0.001),
        ("conv3", 0.001),
        ("timm/resnet18", 0.001),
        ("efficientnet_b0", 0.002),
        ("mobilenet_v2", 0.0025),
        ("vgg11", 0.0005),
        ("alexnet", 0.0001),
        ("vit_b_16", 0.0001),
        ("swin_v2_t", 0.0001),
    ],
)
def test_default_learning_rate(arch, lr):
    assert resolved("delt", arch).lr == lr
    assert resolved("delt", arch, lr=0.5).lr == 0.5


@pytest.mark.parametrize("mix, temperature", [("cutmix", 20), ("mixup", 4), ("none", 20)])
def test_the_temperature_follows_the_mix(mix, temperature):
    assert resolved("delt", mix=mix).temperature == temperature
    assert resolved("delt", mix=mix, temperature=7.0).temperature == 7


@pytest.mark.parametrize(
    "name, given, title",
    [
        ("delt", {}, "delt"),
        ("rded", {}, "rded"),
        ("delt", {"epochs": 300}, "delt"),
        ("delt", {"epochs": 5}, "delt epochs=5"),
        ("rded", {"lr": 0.1, "epochs": 5}, "rded lr=0.1 epochs=5"),
        ("delt", {"labels": "hard"}, "hard"),
        ("hard", {"labels": "soft"}, "delt"),
        ("delt", {"labels": "hard", "epochs": 5}, "delt labels=hard epochs=5"),
        ("delt", {"loss": "mse", "weight_average": 0.99}, "delt loss=mse weight_average=0.99"),
    ],
)
def test_a_flag_wins_and_shows_in_the_name(name, given, title):
    found, settings = with_changes(PROTOCOLS, name, given)
    assert found == title
    assert settings == {**PROTOCOLS[name], **given}


def test_the_result_names_protocol_and_settings(place):
    place.works("validate", protocol="rded", epochs=1, lr=0.01, lr_schedule="steps", lr_steps=[0.5, 0.75])
    [path] = (place / "measured" / "results").glob("*.json")
    stored = json.loads(path.read_text())
    words = stored["protocol"].replace("(0.5, 0.75)", "(0.5,0.75)").split()
    assert words[0] == "rded"
    assert set(words[1:]) == {"epochs=1", "lr=0.01", "lr_schedule=steps", "lr_steps=(0.5,0.75)"}
    assert stored["settings"]["lr"] == 0.01 and stored["settings"]["rand_augment"] == "none"
    assert stored["settings"]["lr_steps"] == [0.5, 0.75]
    assert stored["arguments"]["protocol"] == ["rded"]


def test_a_timm_student(place):
    place.works("validate", student_arch="timm/resnet10t", epochs=1, input_size=14)
    [path] = (place / "measured" / "results").glob("*.json")
    assert json.loads(path.read_text())["student"] == "timm/resnet10t"


def test_mosaics_protocol():
    """DELT's without RandAugment, with milder crops, of tiles."""
    changes = dict(rand_augment="none", min_scale=0.5, tiles="set")
    for side in (1, 2):
        facts = SetFacts(10, 10, 100, 32, tile_side=side)
        found, hard = resolved("mosaic", facts=facts), resolved("mosaic-hard", facts=facts)
        assert found == resolved("delt", facts=facts, **changes) and found.tiles == side
        assert hard == resolved("hard", facts=facts, **changes) and hard.loss == "ce"


def test_tiles_of_the_set():
    for side in (1, 3):
        found = resolved("delt", facts=SetFacts(10, 10, 100, 32, tile_side=side), tiles="set")
        assert (found.tiles, found.tiles_of_set) == (side, True) and said(found)["tiles_of_set"]
    given = resolved("delt", facts=SetFacts(10, 10, 100, 32, tile_side=3), tiles=2)
    assert given.tiles == 2 and "tiles_of_set" not in said(given)


def test_wmdds_protocol():
    """Its students: batches of 100, T 20, a cosine to 0, crops from 8 %, weights of images."""
    found = resolved("wmdd", facts=SetFacts(1000, 10, 10_000, 224))
    assert (found.batch_size, found.temperature, found.lr_schedule, found.min_scale) == (100, 20, "cosine", 0.08)
    assert (found.image_weights, found.rand_augment, found.loss, found.mix) == ("on", "none", "kl", "cutmix")
