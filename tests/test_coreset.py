"""Herding and k-center: the definitions, by brute force, and the selection that ranking makes of them."""
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from conftest import CLASSES, images, snapshot
from helpers import CPU, few
from ranking.coreset import herding, k_center
from utils import features
from utils.checkpoints import load_teacher
from utils.files import UserError
from utils.images import ImageFolder
from utils.loader import TestImages

CASES = st.tuples(st.integers(2, 12), st.integers(1, 4), st.integers(0, 2**30))


def rows(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@few
@given(CASES)
def test_herding_keeps_the_mean(case):
    """Each choice is the one that brings the mean of the chosen closest to the mean of all."""
    found = rows(*case)
    unit = found.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    chosen = herding(found, len(found))
    assert sorted(chosen) == list(range(len(found)))
    for number in range(len(chosen)):
        distances = {k: np.linalg.norm(unit.mean(0) - unit[[*chosen[:number], k]].mean(0))
                     for k in range(len(found)) if k not in chosen[:number]}
        assert distances[chosen[number]] == pytest.approx(min(distances.values()), abs=1e-9)


@few
@given(CASES)
def test_k_center_takes_the_farthest(case):
    found = rows(*case)
    points = found.double().numpy()
    chosen = k_center(found, len(found))
    assert sorted(chosen) == list(range(len(found)))
    from_mean = np.linalg.norm(points - points.mean(0), axis=1)
    assert from_mean[chosen[0]] == pytest.approx(from_mean.min())
    for number in range(1, len(chosen)):
        gaps = {k: min(np.linalg.norm(points[k] - points[j]) for j in chosen[:number])
                for k in range(len(found)) if k not in chosen[:number]}
        assert gaps[chosen[number]] == pytest.approx(max(gaps.values()), abs=1e-9)


def test_twins_are_taken_once_each():
    found = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert sorted(herding(found, 4)) == sorted(k_center(found, 4)) == [0, 1, 2, 3]


def test_features_are_what_the_last_layer_sees(place):
    teacher = load_teacher(None, place.teacher)
    folder = ImageFolder(place.train, "--train-dir")
    seen = []
    teacher.model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batches = TestImages(folder, teacher.input_size, 5)
    for batch, _ in batches:
        teacher.model(CPU.normalised(batch, teacher.mean, teacher.std))
    expected = torch.cat(seen)

    model = features.extractor(load_teacher(None, place.teacher).model.eval())
    found = dict(features.by_class(model, teacher, folder, CPU, "test", 5))
    assert sorted(found) == [0, 1, 2] and [len(found[label]) for label in range(3)] == [7, 7, 7]
    torch.testing.assert_close(torch.cat([found[label] for label in range(3)]), expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_linear_layer_has_no_features():
    with pytest.raises(UserError, match="linear"):
        features.extractor(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize("criterion, function", [("herding", herding), ("k-center", k_center)])
def test_ranking_selects_a_coreset(place, criterion, function):
    place.works("ranking", criterion=criterion, ranking_file=None)
    teacher = load_teacher(None, place.teacher)
    folder = ImageFolder(place.train, "--train-dir")
    found = dict(features.by_class(features.extractor(teacher.model), teacher, folder, CPU, ""))
    expected = {f"{name}/{rank:03d}_{name}{index}.png"
                for label, name in enumerate(CLASSES) for rank, index in enumerate(function(found[label], 4))}
    assert set(images(place / "selected")) == expected
    assert json.loads((place / "selected" / "manifest.json").read_text())["settings"]["criterion"] == criterion
    before = snapshot(place.root)
    assert "already" in place.works("ranking", criterion=criterion, ranking_file=None)
    assert snapshot(place.root) == before


def test_a_coreset_needs_a_place(place):
    outcome = place.run("ranking", criterion="herding", output_dir=None)
    assert outcome.code == 2 and "--output-dir" in outcome.err
