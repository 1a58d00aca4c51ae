"""Soft labels on disk: the teacher is asked once, and never again."""
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import snapshot
from helpers import few
from validate.labels import _narrow, spread

LINE = dict(epochs=3, student_arch="conv3", seeds=2)


def row(place, name):
    [path] = (place / name / "results").glob("*.json")
    stored = json.loads(path.read_text())
    return stored, [(seed["top1"], [entry["loss"] for entry in seed["curve"]]) for seed in stored["seeds"]]


@pytest.fixture
def saved(place):
    place.said = place.works("validate", save_labels=place / "labels", output_dir=place / "saved", **LINE)
    return place


def test_a_student_of_stored_labels_needs_no_teacher_and_is_the_same(saved):
    saved.works("validate", output_dir=saved / "live", **LINE)
    saved.teacher.unlink()
    saved.works("validate", load_labels=saved / "labels", teacher_path=None, output_dir=saved / "loaded", **LINE)
    first, again, live = (row(saved, name) for name in ("saved", "loaded", "live"))
    assert first[1] == again[1], "the very same student"
    assert first[0]["settings"] == again[0]["settings"] and first[0]["protocol"] == "delt epochs=3 stored"
    # Labels of 16 bits: the losses agree with those of the teacher itself to the bits that were kept.
    for (_, kept), (_, exact) in zip(first[1], live[1]):
        assert kept == pytest.approx(exact, rel=0.05, abs=2e-4)


def test_what_is_stored(saved):
    for seed in (0, 1):
        index = json.loads((saved / "labels" / f"seed{seed}" / "index.json").read_text())
        [shard] = index["shards"]
        tensors = load_file(saved / "labels" / f"seed{seed}" / shard["file"])
        views = 3 * 12  # epochs x images, in batches of 10 and 2
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            "order": (views,), "views": (views, 5), "starts": (7,), "mix": (6, 5), "values": (views, 3)}
        assert tensors["values"].dtype == torch.float16 and tensors["views"].dtype == torch.uint8
        torch.testing.assert_close(tensors["values"].float().sum(1), torch.ones(views), atol=2e-3, rtol=0)
        assert sorted(tensors["order"][:12].tolist()) == list(range(12)), "each image once an epoch"
        assert index["bytes"] == sum(path.stat().st_size for path in (saved / "labels" / f"seed{seed}").glob("*.safetensors"))
        assert f"{index['bytes']:,} bytes" in saved.said


def test_labels_are_made_once_for_all_students(saved):
    before = snapshot(saved / "labels")
    saved.works("validate", save_labels=saved / "labels", output_dir=saved / "saved", **LINE)
    saved.works("validate", save_labels=saved / "labels", output_dir=saved / "other", **{**LINE, "student_arch": "resnet18"})
    assert snapshot(saved / "labels") == before


def test_a_broken_off_relabelling_goes_on(saved):
    folder = saved / "labels" / "seed0"
    whole = snapshot(folder)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({"settings": index["settings"], "finished": False}))
    (folder / "00000.safetensors").write_bytes(b"cut off")
    saved.works("validate", save_labels=saved / "labels", output_dir=saved / "again", **LINE)
    assert {name: entry[0] for name, entry in snapshot(folder).items()} == {name: entry[0] for name, entry in whole.items()}


def test_top_k_keeps_the_largest_and_says_so(place):
    place.works("validate", save_labels=place / "labels", top_k=1, **LINE)
    index = json.loads((place / "labels" / "seed0" / "index.json").read_text())
    tensors = load_file(place / "labels" / "seed0" / index["shards"][0]["file"])
    assert tensors["values"].shape == tensors["classes"].shape == (36, 1) and tensors["classes"].dtype == torch.uint8
    assert tensors["values"].min() > 1 / 3 - 1e-3, "the largest of three"
    assert row(place, "measured")[0]["protocol"] == "delt epochs=3 stored top-1"
    place.works("validate", load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded", **LINE)
    assert row(place, "loaded")[1] == row(place, "measured")[1]


@few
@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**30))
def test_spread_gives_what_is_missing_to_the_others_evenly(kept, count, seed):
    whole = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed)).softmax(1)
    order = whole.argsort(1, descending=True)[:, :kept]
    found = spread(whole.gather(1, order), order, 10)
    for given_row, chosen, result in zip(whole, order.tolist(), found):
        rest = 1 - sum(float(given_row[k]) for k in chosen)
        expected = [float(given_row[k]) if k in chosen else rest / (10 - kept) for k in range(10)]
        assert result.tolist() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(0, 70000), min_size=1))
def test_narrow_loses_nothing(numbers):
    assert _narrow(torch.tensor(numbers)).tolist() == numbers


@pytest.mark.parametrize("changes, words", [
    (dict(epochs=4), ["epochs", "3 -> 4"]), (dict(min_scale=0.5), ["min_scale"]), (dict(rand_augment="none"), ["rand_augment"]),
    (dict(seeds=3), ["seed 2", "--save-labels"]), (dict(mean=(0.1, 0.2, 0.3)), ["mean"]), (dict(input_size=28), ["input_size"]),
    (dict(top_k=2), ["--top-k", "--save-labels"]), (dict(protocol="hard"), ["soft"]), (dict(teacher_path="t.pth"), ["no teacher"]),
    (dict(protocol=["delt", "rded"]), ["one"]), (dict(save_labels="x"), ["exclude"])])
def test_labels_of_another_run_are_refused(saved, changes, words):
    before = snapshot(saved.root)
    outcome = saved.run("validate", **{**LINE, "load_labels": saved / "labels", "teacher_path": None,
                                       "output_dir": saved / "loaded", **changes})
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert snapshot(saved.root) == before


def test_labels_of_other_images_are_refused(saved):
    outcome = saved.run("validate", syn_dir=saved.train, ipc=4, load_labels=saved / "labels", teacher_path=None,
                        output_dir=saved / "loaded", **LINE)
    assert outcome.code == 2 and "images" in outcome.err


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "index.json").write_text("{"), lambda folder: (folder / "index.json").write_text("[]"),
    lambda folder: (folder / "index.json").write_text("{\"finished\": true}"),
    lambda folder: (folder / "00000.safetensors").write_bytes(b"nothing"), lambda folder: (folder / "00000.safetensors").unlink()])
def test_damaged_labels_are_named(saved, damage):
    damage(saved / "labels" / "seed1")
    outcome = saved.run("validate", load_labels=saved / "labels", teacher_path=None, output_dir=saved / "loaded", **LINE)
    assert outcome.code == 2 and "seed1" in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (saved / "loaded").exists(), "before the first student, not after it"
