"""Which data set decides the students' batch: the flag's, the teacher's, or the one that the set's manifest names."""

import json

import pytest
import torch

from result_files import result
from utils.data import datasets
from validate import protocols


@pytest.fixture
def own_batch(monkeypatch):
    """A data set of the test's three classes whose students have batches of 5; by IPC 4 they have 10."""
    facts = datasets.DataSet(classes=3, input_size=14, mean=(0.2, 0.3, 0.4), student_batch=5)
    monkeypatch.setitem(datasets.DATASETS, "insects", facts)


def batch_sizes(place, **line):
    place.works("validate", epochs=1, **line)
    return {json.loads(path.read_text())["settings"]["batch_size"] for path in (place / "measured/results").iterdir()}


def test_nobody_names_one(place, own_batch):
    assert batch_sizes(place) == {10}


def test_the_flag_names_it(place, own_batch):
    assert batch_sizes(place, dataset="insects") == {5}


@pytest.mark.parametrize("said", [{"settings": {"dataset": "insects"}}, {"dataset": "insects"}])
def test_the_teacher_names_it(place, own_batch, said):
    teacher = torch.load(place.teacher, weights_only=True)
    torch.save({**teacher, **said}, place.teacher)
    assert batch_sizes(place) == {5}
    assert batch_sizes(place, save_labels=place / "labels", method="b") == {5}
    line = dict(teacher_path=None, load_labels=place / "labels", student_arch="conv2", method="c")
    assert batch_sizes(place, **line) == {5}, "stored labels know it from their teacher"


@pytest.mark.parametrize("said", [{"dataset": "insects"}, {"arguments": {"dataset": "insects"}}])
def test_the_manifest_of_one_set_decides_for_all(place, own_batch, said):
    (place.init / "manifest.json").write_text(json.dumps(said))
    assert batch_sizes(place, syn_dir=[place.val, place.init], ipc=4, method=["a", "b"]) == {5}


def test_without_a_teacher_the_data_set_of_the_manifest_says_how_images_are_normalised(place, own_batch):
    facts = datasets.DATASETS["insects"]
    line = dict(epochs=1, labels="hard", student_arch="conv3", teacher_path=None, output_dir=place / "hard")
    (place.init / "manifest.json").write_text(json.dumps({"dataset": "insects"}))
    place.works("validate", **line)
    settings = result(place, "hard")["settings"]
    assert (settings["mean"], settings["std"]) == (list(facts.mean), list(facts.std))


@pytest.mark.parametrize("said", [{"settings": []}, {"dataset": 3}, {"settings": {"dataset": "unheard-of"}}])
def test_what_names_none_decides_nothing(place, own_batch, said):
    teacher = torch.load(place.teacher, weights_only=True)
    torch.save({**teacher, **said}, place.teacher)
    (place.init / "manifest.json").write_text(json.dumps({"dataset": ["insects"], "arguments": 3}))
    assert batch_sizes(place) == {10}


@pytest.mark.parametrize("named", [None, "flag", "teacher", "manifest"])
def test_the_settings_of_a_protocol_for_a_data_set_are_found_in_the_same_way(place, own_batch, monkeypatch, named):
    monkeypatch.setitem(protocols.DATASET_SETTINGS, "sre2l", {"insects": {"weight_decay": 0.25}})
    if named == "teacher":
        torch.save({**torch.load(place.teacher, weights_only=True), "dataset": "insects"}, place.teacher)
    if named == "manifest":
        (place.init / "manifest.json").write_text(json.dumps({"dataset": "insects"}))
    place.works("validate", epochs=1, protocol="sre2l", dataset="insects" if named == "flag" else None)
    [path] = (place / "measured" / "results").iterdir()
    content = json.loads(path.read_text())
    assert content["settings"]["weight_decay"] == (0.25 if named else 0.01) and content["protocol"] == "sre2l epochs=1"
    assert content["dataset"] == ("insects" if named else place.root.name), "the tables name it, too"
    assert (content["known_dataset"], content["classes"]) == ("insects" if named else None, 3)


def test_stages_write_it_down(place, own_batch):
    for stage, folder in (("ranking", "selected"), ("recover", "syn")):
        place.works(stage, dataset="insects")
        manifest = json.loads((place / folder / "manifest.json").read_text())
        assert "insects" in (manifest.get("dataset"), manifest.get("arguments", {}).get("dataset"))


def test_flags_are_judged_by_the_protocol_of_the_teachers_data_set(place, own_batch, monkeypatch):
    monkeypatch.setitem(protocols.DATASET_SETTINGS, "sre2l", {"insects": {"optimizer": "sgd"}})
    line = dict(protocol="sre2l", momentum=0.5, epochs=1)
    outcome = place.run("validate", **line)
    assert outcome.code == 2 and "--momentum does nothing without --optimizer sgd" in outcome.err
    torch.save({**torch.load(place.teacher, weights_only=True), "dataset": "insects"}, place.teacher)
    place.works("validate", **line)
