"""The methods gvbsm and edc from their files of statistics to their images."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from conftest import CLASSES, images, snapshot
from recover.engine import Recovery
from recover.methods import recipes
from recover.needs import needs
from recover.objectives import OBJECTIVES
from recover.settings import Settings
from refusals import refused
from utils.nets import statistics
from utils.run.errors import UserError

LINE = dict(iterations=6, round_iterations=None, ipc=3, batch_size=6, workers=0)  # units: ant and moth, zebra


@pytest.fixture
def two(place):
    """Two teachers with files of their statistics; the second one normalises images by other numbers."""
    other = dict(output=place / "other.pth", seed=1, arch="conv2_w16", mean=(0.5, 0.45, 0.4), std=(0.25,) * 3)
    place.works("squeeze", **other, epochs=1)
    paths = [place.teacher, place / "other.pth"]
    for path in paths:
        words = (
            f"--per-class --batch-size 8 --device cpu --precision fp32 --workers 0 --train-dir {place.train}".split()
        )
        outcome = place.start(
            "squeeze.statistics", *words, "--teacher-path", path, "--output", path.with_suffix(".safetensors")
        )
        assert outcome.code == 0, outcome.err
    place.lines["recover"] |= dict(
        LINE, teacher_path=paths, statistics=[path.with_suffix(".safetensors") for path in paths]
    )
    return place


def test_the_file_that_gvbsm_needs_leaves_no_batchnorm_out(two):
    """Without targets of their own they are compared with their running statistics, as with a fuller file."""
    flags = needs("gvbsm").statistics.replace("64", "8").split()
    words = [*flags, *"--device cpu --precision fp32 --workers 0".split(), "--train-dir", two.train]
    plain = [path.with_suffix(".plain.safetensors") for path in two.lines["recover"]["teacher_path"]]
    for teacher, path in zip(two.lines["recover"]["teacher_path"], plain):
        outcome = two.start("squeeze.statistics", *words, "--teacher-path", teacher, "--output", path)
        assert outcome.code == 0, outcome.err
        layers = statistics.read(path).layers
        assert [layer.kind for layer in layers].count("batchnorm") == [layer.kind for layer in layers].count(
            "convolution"
        )
    line = dict(method="gvbsm", iterations=2)
    two.works("recover", syn_dir=two / "plain", **{**line, "statistics": plain})
    two.works("recover", syn_dir=two / "full", **line)
    assert images(two / "plain") == images(two / "full")


def test_a_file_of_an_earlier_version_is_refused(two):
    """Of convolutions alone it lacked the BatchNorms among its layers; one of the classes always had them."""
    [path, _] = two.lines["recover"]["statistics"]
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["statistics"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert "format" not in facts["settings"]
    facts["settings"]["per_class"] = False
    save_file(tensors, path, {"statistics": json.dumps(facts)})
    refused(two, "recover", "another version", "squeeze.statistics --overwrite", method="gvbsm")


def test_a_file_of_an_earlier_version_with_batchnorms_serves(two):
    """Its flag --norms is gone; BatchNorms' `mean` and `var` are there and change nothing."""
    files, with_norms = two.lines["recover"]["statistics"], []
    for number, path in enumerate(files):
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["statistics"])
            tensors = {name: file.get_tensor(name) for name in file.keys() if ".class_" not in name}
        for layer in facts["layers"]:
            if layer["kind"] == "batchnorm":
                tensors |= {f"{layer['name']}.{part}": torch.ones(layer["channels"]) for part in ("mean", "var")}
        facts["settings"] |= {"per_class": False, "norms": True}
        assert "format" not in facts["settings"]
        with_norms.append(two / f"norms{number}.safetensors")
        save_file(tensors, with_norms[-1], {"statistics": json.dumps(facts)})
    for name, given in {"now": files, "then": with_norms}.items():
        two.works("recover", method="gvbsm", iterations=2, statistics=given, syn_dir=two / name)
    assert images(two / "then") == images(two / "now")


def test_stages_of_several_sizes_do_not_go_with_a_file_of_one():
    settings = Settings.of({**recipes()["gvbsm"], "stages": 2, "stage_sizes": (0.75, 1.0)}, ("file.safetensors",))
    with pytest.raises(UserError, match="--stage-sizes: a file of statistics is of maps of one size"):
        OBJECTIVES["statistics"].build([None], settings)


@pytest.mark.parametrize(
    "line", [dict(method="gvbsm", option=["drop=0.4"]), dict(method="edc")], ids=lambda x: x["method"]
)
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_a_stopped_unit_goes_on_with_its_averages(two, monkeypatch, line, steps):
    """Stopped in the first unit, at its end, and in the second unit; the averages and what is dropped go on."""
    two.works("recover", syn_dir=two / "whole", **line)
    made = images(two / "whole")
    assert [name.split("/")[0] for name in made] == [name for name in CLASSES for _ in range(3)]
    calls, step = [], Recovery.step

    def counted(self):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Recovery, "step", counted)
    assert two.run("recover", **line).code == 128 + signal.SIGTERM
    two.works("recover", **line)
    assert len(calls) == 12, "no step was computed twice"
    assert images(two.syn) == made


@pytest.mark.slow
def test_each_setting_matters(two):
    """Without dropping or averages, or with classes' statistics, the images are others."""
    sets = []
    for number, option in enumerate(["drop=0.4", "drop=0.0", "class_share=0.5", "momentum=0.0"]):
        two.works("recover", method="gvbsm", option=["drop=0.4", option], syn_dir=two / f"syn{number}")
        sets.append(images(two / f"syn{number}"))
    assert all(sets[0] != other for other in sets[1:])
    settings = json.loads((two / "syn2" / "manifest.json").read_text())
    assert settings["method"].startswith("gvbsm") and "class_share=0.5" in settings["method"]
    assert settings["settings"]["class_share"] == 0.5


def test_edc_starts_from_the_selected_images(two):
    two.works("recover", method="edc", lr=0)
    for name in CLASSES:
        for made, start in zip(sorted((two.syn / name).iterdir()), sorted((two.init / name).iterdir())):
            pixels = np.asarray(Image.open(start).resize((14, 14), Image.BILINEAR)).astype(int)
            assert np.abs(np.asarray(Image.open(made)).astype(int) - pixels).mean() < 12


def test_the_files_are_part_of_what_a_set_is(two):
    two.works("recover", method="edc")
    before = snapshot(two.syn)
    assert "complete" in two.works("recover", method="edc")
    [first, _] = two.lines["recover"]["statistics"]
    words = ["--train-dir", two.train, "--teacher-path", two.teacher, "--output", first, "--overwrite", "--per-class"]
    assert two.start("squeeze.statistics", *words, "--device", "cpu", "--seed", 5, "--batch-size", 4).code == 0
    outcome = two.run("recover", method="edc")
    assert outcome.code == 2 and "--overwrite" in outcome.err and snapshot(two.syn) == before


@pytest.mark.parametrize(
    "files, said",
    [
        (["other", "teacher"], "other.safetensors: was collected with another teacher (conv2_w16"),
        (["teacher"], "--statistics names 1 files for 2 teachers"),
        ([], "--statistics names 0 files for 2 teachers"),
        (["nothing", "other"], "nothing.safetensors: no such file"),
        (["empty", "other"], "empty.safetensors: is no file of statistics, or damaged"),
    ],
)
def test_wrong_files_are_one_line(two, files, said):
    (two / "empty.safetensors").write_bytes(b"")
    before = snapshot(two.root)
    paths = [two / f"{name}.safetensors" for name in files]
    outcome = two.run("recover", method="gvbsm", statistics=paths or None)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert said in outcome.err
    assert {k: v for k, v in snapshot(two.root).items() if "lock" not in k} == before


def test_options_out_of_range_are_one_line(two):
    outcome = two.run("recover", method="gvbsm", option="drop=1.5")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "drop=1.5: is not between 0 and 1" in outcome.err


PUBLISHED = {
    ("gvbsm", "imagenet1k"): dict(iterations=4000, lr=0.1, batch_size=80, crop="resized", momentum=0.4, drop=0.0),
    ("gvbsm", "cifar10"): dict(iterations=4000, lr=0.05, batch_size=100, crop="padded", momentum=0.8, drop=0.4),
    ("edc", "imagenet1k"): dict(iterations=2000, batch_size=80, r_bn=0.1, min_crop=0.5),
    ("edc", "imagenette"): dict(iterations=1000, batch_size=100, r_bn=0.1, min_crop=0.5),
    ("edc", "cifar10"): dict(iterations=75, batch_size=0, r_bn=0.01, min_crop=0.08),
    ("edc", "cifar100"): dict(iterations=2000, batch_size=100, r_bn=0.01, min_crop=0.5),
    ("edc", "tinyimagenet"): dict(iterations=2000, batch_size=100, r_bn=0.01, min_crop=0.5),
}


@pytest.mark.parametrize("method, dataset", PUBLISHED)
def test_published_settings(method, dataset):
    common = dict(
        gvbsm=dict(r_bn=0.01, init="noise", jitter=32, jitter_low=0, densification=1.0, class_share=0.0),
        edc=dict(lr=0.05, init="images", jitter=0, momentum=0.8, drop=0.0, class_share=0.5, densification=0.0),
    )
    found = recipes(dataset)[method]
    expected = dict(
        first_bn_multiplier=10.0,
        combine="turn",
        batch_by="class",
        flip=True,
        round_iterations=0,
        **PUBLISHED[method, dataset],
        **common[method],
    )
    assert {name: found[name] for name in expected} == expected
    if found["crop"] == "resized":
        assert found["milestone"] == 0, "crops are as small as they get from the start"


def test_what_they_need():
    assert needs("gvbsm").statistics and "--per-class" not in needs("gvbsm").statistics
    assert "--per-class" in needs("edc").statistics
    assert needs("edc", "cifar10").ranking == "--criterion random"
    assert needs("edc", "imagenet1k").ranking == needs("rded", "imagenet1k").ranking
    assert (needs("gvbsm").protocol, needs("edc").protocol) == ("gvbsm", "edc")
