"""The method wmdd as its users meet it: barycenters, images at their features, weights that reach the students."""

import json
import os
import signal
from unittest import mock

import numpy as np
import pytest
import torch

from conftest import CLASSES, images, snapshot
from recover.engine import Recovery
from recover.needs import needs
from utils.data.images import read_rgb, to_batch
from utils.nets import statistics
from utils.nets.features import extractor
from utils.nets.teacher import load_teacher

pytest.importorskip("ot")

IPC = 2
LINE = dict(method="wmdd", iterations=8, round_iterations=None, ipc=IPC, batch_size=4, init_dir=None)


def barycenters(place, output="points.safetensors", **changes):
    flags = dict(train_dir=place.train, teacher_path=place.teacher, output=place / output, ipc=IPC)
    flags |= dict(device="cpu", precision="fp32", compile="off", **changes)
    words = [w for k, v in flags.items() for w in ["--" + k.replace("_", "-"), *([] if v is True else [v])]]
    outcome = place.start("squeeze.barycenters", *words)
    assert outcome.code == 0, outcome.err
    return place / output


def collected(place, output="classes.safetensors", flags=None, **changes):
    """A file of statistics by the flags that the method asks for, if no others are given."""
    line = {**dict(train_dir=place.train, teacher_path=place.teacher, output=place / output), **changes}
    words = [w for k, v in line.items() for w in ("--" + k.replace("_", "-"), v)]
    words += needs("wmdd").statistics.split() if flags is None else flags
    outcome = place.start("squeeze.statistics", *words, "--device", "cpu", "--precision", "fp32", "--compile", "off")
    assert outcome.code == 0, outcome.err
    return place / output


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def features(place):
    """(classes, ipc, D) of the images that were made, whole."""
    teacher = load_teacher(None, place.teacher)
    files = [place.syn / name for name in images(place.syn)]
    batch = to_batch([read_rgb(path) for path in files])
    with torch.no_grad():
        found = extractor(teacher.network)(teacher.geometry.normalise(batch, torch.device("cpu")))
    return found.view(len(CLASSES), IPC, -1)


def test_images_come_to_the_points_of_their_class(place):
    points = statistics.read(barycenters(place)).tensors["points"]
    line = {**LINE, "iterations": 150, "r_bn": 0, "min_crop": 1.0, "jitter": 0, "jitter_low": 0, "flip": "off"}
    place.works("recover", **line, lr=0.1, statistics=place / "points.safetensors")
    distances = torch.cdist(features(place).flatten(0, 1), points.flatten(0, 1))
    # Of all points of all classes an image is closest to its own.
    assert distances.argmin(1).tolist() == list(range(len(CLASSES) * IPC))


def test_the_set_says_what_it_was_made_of(place):
    paths = [barycenters(place), collected(place)]
    place.works("recover", **LINE, statistics=paths)
    found = manifest(place.syn)
    digests = [statistics.read(path).sha256 for path in paths]
    assert found["method"] == "wmdd iterations=8" and found["settings"]["statistics"] == digests
    assert len(found["images"]) == len(CLASSES) * IPC and not any(
        "weight" in entry for entry in found["images"].values()
    )
    before = snapshot(place.syn)
    assert "complete" in place.works("recover", **LINE, statistics=paths)
    assert snapshot(place.syn) == before
    others = [barycenters(place, "others.safetensors", seed=1), paths[1]]
    outcome = place.run("recover", **LINE, statistics=others)
    assert outcome.code == 2 and "statistics:" in outcome.err and "another run" in outcome.err


def test_learned_weights_reach_the_students(place):
    """Set by set: weights of the file, of the manifest, and of what the students' losses are weighed by."""
    path = barycenters(place, learn_weights=True)
    weights = statistics.read(path).tensors["weights"].flatten().tolist()
    place.works("recover", **LINE, statistics=[path, collected(place)])
    entries = manifest(place.syn)["images"]
    assert [entries[name]["weight"] for name in sorted(entries)] == pytest.approx(weights)

    line = dict(syn_dir=place.syn, protocol="wmdd", epochs=2)
    assert "weighted images" in place.works("validate", **line)
    place.works("validate", **line, image_weights="off")
    on, off = (
        json.loads(file.read_text())
        for file in sorted((place / "measured" / "results").glob("*.json"), key=lambda file: "off" in file.name)
    )
    assert on["settings"]["weights"] == pytest.approx(weights) and off["settings"]["weights"] is None
    losses = [found["seeds"][0]["curve"][0]["loss"] for found in (on, off)]
    assert np.ptp(weights) > 0.05 and losses[0] != losses[1]


@pytest.mark.parametrize("per_class", [False, True])
def test_interrupted_inside_a_unit_it_ends_with_the_same_bytes(place, per_class):
    files = [barycenters(place)]
    line = {**LINE, "statistics": files, "syn_dir": place / "whole"}
    if per_class:
        files.append(collected(place))
    else:
        line["option"] = "per_class=false"
    place.works("recover", **line)
    assert manifest(place / "whole")["settings"]["per_class"] is per_class

    steps, step = [], Recovery.step

    def stopping(recovery):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(recovery)

    with mock.patch.object(Recovery, "step", stopping):
        assert place.run("recover", **{**line, "syn_dir": place.syn}).code != 0
    assert len(steps) == 3 and not images(place.syn)
    place.works("recover", **{**line, "syn_dir": place.syn})
    assert images(place.syn) == images(place / "whole") and len(images(place.syn)) == len(CLASSES) * IPC


def test_statistics_of_the_classes_change_the_images(place):
    """They are the recipe's; without them the points alone will do, and the set's name says so."""
    points, classes = barycenters(place), collected(place)
    place.works("recover", **LINE, r_bn=1, statistics=[classes, points])  # in any order
    assert manifest(place.syn)["method"] == "wmdd iterations=8 r_bn=1.0"
    line = {**LINE, "r_bn": 1, "option": "per_class=false", "syn_dir": place / "without"}
    place.works("recover", **line, statistics=points)
    assert manifest(place / "without")["method"] == "wmdd iterations=8 r_bn=1.0 per_class=False"
    assert images(place.syn) != images(place / "without")


def test_several_teachers_have_files_of_their_own(place):
    place.works("squeeze", output=place / "other.pth", seed=1)
    files = [barycenters(place)]
    words = dict(train_dir=place.train, teacher_path=place / "other.pth", output=place / "o.safetensors", ipc=IPC)
    words = [w for k, v in words.items() for w in ("--" + k.replace("_", "-"), v)]
    assert place.start("squeeze.barycenters", *words, "--device", "cpu", "--precision", "fp32").code == 0
    files.insert(0, place / "o.safetensors")
    files += [collected(place), collected(place, "other_classes.safetensors", teacher_path=place / "other.pth")]
    place.works("recover", **LINE, teacher_path=[place.teacher, place / "other.pth"], statistics=files)
    assert len(images(place.syn)) == len(CLASSES) * IPC


@pytest.mark.parametrize(
    "case, changes, told",
    [
        ("none", {}, "needs a file of the barycenters of its features: python -m squeeze.barycenters"),
        ("points", dict(ipc=3, option="per_class=false"), "--ipc 2"),
        ("points", dict(batch_by="index", option="per_class=false"), "--batch-by class"),
        ("points", {}, "python -m squeeze.statistics --per-class"),
        ("both", {}, "--per-class"),
        ("twice", dict(option="per_class=false"), "more.safetensors are both of this conv3; give one"),
        ("more", dict(option="per_class=false"), "more.safetensors: was collected with another teacher"),
        ("other", {}, "with another teacher"),
        ("other", {}, "collect them anew: python -m squeeze.barycenters"),
        ("damaged", {}, "damaged"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_work(place, case, changes, told):
    files = [] if case == "none" else [barycenters(place)]
    if case == "both":
        files.append(collected(place, flags=[]))
    if case in ("twice", "more"):
        other = dict(teacher_path=place / "other.pth") if case == "more" else dict(seed=1)
        if case == "more":
            place.works("squeeze", output=place / "other.pth", seed=1)
        files.append(barycenters(place, "more.safetensors", **other))
    if case == "other":
        place.works("squeeze", output=place.teacher, seed=1, overwrite=True)
    if case == "damaged":
        files[0].write_bytes(files[0].read_bytes()[:100])
    outcome = place.run("recover", **{**LINE, **changes, "statistics": files or None})
    assert outcome.code == 2 and told in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not images(place.syn)
