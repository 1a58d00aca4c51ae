"""What a checkpoint leaves to flags decides its answers: nothing that was made with others is taken for the same."""

import json

import pytest
import torch

from conftest import CLASSES, INPUT, MEAN, STD
from refusals import refused
from utils.nets import checkpoints, models

MOBILE = dict(arch="mobilenet_v2", input_size=INPUT, classes=list(CLASSES), mean=list(MEAN), std=list(STD))


@pytest.fixture
def mobile(place):
    """A teacher whose weights have the same shapes with both stems, and whose file does not say which it is."""
    torch.manual_seed(0)
    checkpoints.save(place.teacher, models.build("mobilenet_v2", 3, INPUT, "cifar"), **MOBILE)
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
