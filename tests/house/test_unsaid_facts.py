"""What a checkpoint leaves to flags decides its answers: nothing that was made with others is taken for the same."""

import json
import shutil

import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD
from refusals import refused
from result_files import result
from utils.nets import checkpoints, models

MOBILE = dict(arch="mobilenet_v2", input_size=INPUT, classes=list(CLASSES), mean=list(MEAN), std=list(STD))
QUICK = dict(epochs=1, student_arch="conv3")
STEM = "stem of teacher 1"


@pytest.fixture
def mobile(place):
    """A teacher whose weights have the same shapes with both stems, and whose file does not say which it is."""
    torch.manual_seed(0)
    checkpoints.save(place.teacher, models.build("mobilenet_v2", 3, INPUT, "cifar"), **MOBILE)
    return place


@pytest.fixture
def two(place):
    """The teacher, which says all, and bare weights; what is given for these is given to both."""
    torch.save(torch.load(place.teacher, weights_only=True)["model"], place / "bare.pth")
    place.both = dict(teacher_path=[place.teacher, place / "bare.pth"], teacher_arch="conv3", input_size=INPUT)
    place.alike = {**place.both, "mean": MEAN, "std": STD}  # else ImageNet's are assumed of the second one
    return place


def settings(path):
    return json.loads(path.read_text())["settings"]


# --- the stem ----------------------------------------------------------------------------------------------------


def test_scores_and_selections_by_another_stem(mobile):
    mobile.works("ranking", output_dir=None)
    assert settings(mobile / "ranking.csv.json")["stem"] == "cifar"
    refused(mobile, "ranking", "stem: cifar -> imagenet", "--overwrite", stem="imagenet")
    mobile.works("ranking", stem="cifar")  # what was assumed

    requests = []
    for name, stem in ("assumed", None), ("cifar", "cifar"), ("imagenet", "imagenet"):
        line = dict(criterion="herding", ranking_file=None, output_dir=mobile / name, stem=stem)
        mobile.works("ranking", **line)
        requests.append(json.loads((mobile / name / "manifest.json").read_text())["request"])
    assert requests[0] == requests[1] != requests[2]


def test_statistics_by_another_stem(mobile):
    words = ["--train-dir", mobile.train, "--teacher-path", mobile.teacher, "--output", mobile / "s.safetensors"]
    words += ["--device", "cpu", "--precision", "fp32", "--workers", 0]
    assert mobile.start("squeeze.statistics", *words).code == 0
    outcome = mobile.start("squeeze.statistics", *words, "--stem", "imagenet")
    assert outcome.code == 2 and "stem: cifar -> imagenet" in outcome.err
    line = dict(method="gvbsm", statistics=mobile / "s.safetensors", round_iterations=None, ipc=3, batch_size=9)
    refused(mobile, "recover", "collected with stem cifar", "the teacher's is imagenet", **line, stem="imagenet")


def test_labels_by_another_stem(mobile):
    line = dict(save_labels=mobile / "labels", **QUICK)
    mobile.works("validate", **line)
    index = mobile / "labels" / "seed0" / "index.json"
    assert settings(index)[STEM] == "cifar" and STEM not in result(mobile)["settings"]
    outcome = mobile.run("validate", **line, stem="imagenet")
    assert outcome.code == 2 and f"{STEM}: cifar -> imagenet" in outcome.err
    assert settings(index)[STEM] == "cifar"


def test_a_student_of_labels_by_another_stem_is_another_result(mobile):
    line = dict(output_dir=mobile / "loaded", **QUICK)
    mobile.works("validate", save_labels=mobile / "labels", stem="imagenet", **QUICK)
    loading = dict(line, load_labels=mobile / "labels", teacher_path=None)
    mobile.works("validate", **loading, stem="imagenet")
    assert result(mobile, "loaded")["settings"] == result(mobile)["settings"], "stored or found: one run"
    # Without the flag the students' stem is cifar, whatever that of the teacher was who labelled.
    mobile.works("validate", **loading)
    said = mobile.works("validate", **line, save_labels=mobile / "others")
    assert "is complete" not in said and len(list((mobile / "loaded" / "results").glob("*.json"))) == 3


# --- the normalisation of several teachers -----------------------------------------------------------------------


def test_a_set_by_two_teachers(two):
    two.works("recover", **two.both)
    words = "mean of teacher 2: [0.485, 0.456, 0.406] -> None", "std of teacher 2: ", "--overwrite"
    refused(two, "recover", *words, **two.alike)
    two.works("recover", **two.alike, syn_dir=two / "alike")
    assert settings(two.syn / "manifest.json").keys() - settings(two / "alike/manifest.json").keys() == {
        "mean of teacher 2",
        "std of teacher 2",
    }


def test_a_student_of_two_teachers(two):
    two.works("validate", **two.both, **QUICK)
    assert "is complete" in two.works("validate", **two.both, **QUICK)
    assert "is complete" not in two.works("validate", **two.alike, **QUICK)
    found = [json.loads(path.read_text()) for path in (two / "measured" / "results").glob("*.json")]
    assert [one["settings"]["mean"] for one in found] == [list(MEAN)] * 2
    assert {str(one["settings"].get("mean of teacher 2")) for one in found} == {"None", "[0.485, 0.456, 0.406]"}


def test_labels_of_two_teachers(two):
    line = dict(save_labels=two / "labels", **QUICK)
    two.works("validate", **two.both, **line)
    outcome = two.run("validate", **two.alike, **line)
    assert outcome.code == 2 and "mean of teacher 2: [0.485, 0.456, 0.406] -> None" in outcome.err
    loading = dict(load_labels=two / "labels", teacher_path=None, output_dir=two / "loaded")
    two.works("validate", **loading, **QUICK)
    [saved] = [one for one in (two / "measured" / "results").glob("*.json") if "mean of teacher 2" in settings(one)]
    assert result(two, "loaded")["settings"] == settings(saved)


# --- the input size ----------------------------------------------------------------------------------------------


def sizeless(path):
    """A teacher that takes images of any size, and does not say which."""
    torch.manual_seed(0)
    facts = {name: value for name, value in MOBILE.items() if name != "input_size"}
    checkpoints.save(path, models.build("mobilenet_v2", 3, INPUT, "cifar"), stem="cifar", **facts)
    return path


@pytest.fixture
def mixed(place):
    """A train folder with two images of 40 pixels, the least likely of a class, and a selection of the likeliest."""
    sizeless(place.teacher)
    line = dict(criterion="top", ipc=1)
    place.works("ranking", ranking_file=place / "before.csv", output_dir=None, input_size=40, **line)
    for row in (place / "before.csv").read_text().splitlines()[-2:]:
        path = place.train / row.split(",")[0]
        Image.open(path).resize((40, 40)).save(path)
    assert "input_size 40 (from the images)" in place.works("ranking", **line)
    assert {Image.open(path).size for path in (place / "selected").glob("*/*.png")} == {(16, 16)}
    place.lines["recover"].update(init_dir=place / "selected", iterations=2)
    place.lines["validate"].update(syn_dir=place / "selected", **QUICK)
    return place


def test_all_stages_show_a_teacher_images_of_one_size(mixed):
    source = f"input_size 40 (from {mixed / 'selected' / 'manifest.json'})"
    assert source in mixed.works("recover")
    assert {Image.open(path).size for path in mixed.syn.glob("*/*.png")} == {(40, 40)}
    assert source in mixed.works("validate")
    shutil.copytree(mixed / "selected", mixed / "plain", ignore=shutil.ignore_patterns("manifest.json"))
    line = dict(output_dir=mixed / "again", syn_dir=[mixed / "plain", mixed.syn])
    assert str(mixed.syn / "manifest.json") in mixed.works("validate", **line)
    found = [json.loads(path.read_text()) for path in mixed.root.glob("*/results/*.json")]
    assert [one["settings"]["input_size"] for one in found] == [40] * 3


def test_a_selection_by_features_says_the_size_too(mixed):
    mixed.works("ranking", criterion="herding", ipc=1, ranking_file=None, output_dir=mixed / "herding")
    assert "input_size 40 (from " in mixed.works("recover", init_dir=mixed / "herding")


def test_a_given_size_wins(mixed):
    assert " 24 px" in mixed.works("recover", input_size=24)
    line = dict(syn_dir=[mixed / "selected", mixed.syn])
    refused(mixed, "validate", mixed.syn, "24 pixels", mixed / "selected", "40", "--input-size", **line)
    assert " 24 px" in mixed.works("validate", input_size=24, **line)


def test_a_teacher_that_says_its_size_is_asked_at_that(place):
    """Whatever a manifest says: the images may have been chosen by another one."""
    place.works("ranking", teacher_path=sizeless(place / "other.pth"), input_size=40)
    assert f" {INPUT} px" in place.works("recover", init_dir=place / "selected")
    assert f" {INPUT} px" in place.works("validate", syn_dir=[place / "selected", place.syn], **QUICK)
