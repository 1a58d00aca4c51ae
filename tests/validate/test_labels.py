"""Soft labels on disk: the teacher is asked once, and never again."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from conftest import COLOURS, INPUT, draw, snapshot
from helpers import few
from plain_teacher import logits
from refusals import refused
from result_files import result
from students import noise_folder, small_student, stream
from validate.label_writer import Writer, _narrow
from validate.labels import StoredLabels, complete_probabilities
from validate.targets import Teachers

LINE = dict(epochs=3, student_arch="conv3", seeds=2)
BARE = dict(rand_augment="none", min_scale=1, flip=0, mix="none")  # the images as they stand


def curves(place, name):
    """(last top-1, losses of the epochs) of each seed."""
    return [(seed["top1"], [entry["loss"] for entry in seed["curve"]]) for seed in result(place, name)["seeds"]]


def index_of(place, seed=0):
    return json.loads((place / "labels" / f"seed{seed}" / "index.json").read_text())


def shard_of(place, seed=0):
    [shard] = index_of(place, seed)["shards"]
    return load_file(place / "labels" / f"seed{seed}" / shard["file"])


@pytest.fixture(scope="module")
def made(stock, tmp_path_factory):
    """The data set with labels of it, and students that learned from them."""
    place = stock.copied(tmp_path_factory.mktemp("made"))
    place.said = place.works("validate", save_labels=place / "labels", output_dir=place / "saved", **LINE)
    return place


@pytest.fixture
def saved(made, tmp_path):
    """A copy of it to spoil."""
    place = made.copied(tmp_path)
    place.said = made.said
    place.loading = dict(load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded", **LINE)
    return place


@pytest.mark.parametrize("other", ["another teacher", "fewer classes"])
def test_labels_of_seeds_that_were_made_otherwise_are_no_labels_of_one_row(saved, other):
    line = {**LINE, "seeds": 1, "seed": 1, "overwrite": True, "save_labels": saved / "labels"}
    if other == "fewer classes":
        line["top_k"] = 1
    else:
        checkpoint = torch.load(saved.teacher, weights_only=True)
        checkpoint["model"] = {name: tensor * 1.5 for name, tensor in checkpoint["model"].items()}
        torch.save(checkpoint, saved.teacher)
    saved.works("validate", output_dir=saved / "other", **line)
    name = "kept: 3 -> 1" if "top_k" in line else "teachers"
    refused(saved, "validate", f"seed1: its labels are not made as those of {saved / 'labels'}", name, **saved.loading)
    saved.works("validate", **{**saved.loading, "seeds": 1, "seed": 1})


def test_a_student_of_stored_labels_needs_no_teacher_and_is_the_same(saved):
    saved.works("validate", output_dir=saved / "live", **LINE)
    saved.teacher.unlink()
    saved.works("validate", **saved.loading)
    first, again = (result(saved, name) for name in ("saved", "loaded"))
    assert curves(saved, "saved") == curves(saved, "loaded"), "the very same student"
    assert first["settings"] == again["settings"] and first["protocol"] == "delt epochs=3 stored"
    # Labels of 16 bits: the losses agree with those of the teacher itself to the bits that were kept.
    for (_, kept), (_, exact) in zip(curves(saved, "saved"), curves(saved, "live")):
        assert kept == pytest.approx(exact, rel=0.05, abs=2e-4)


def test_what_is_stored(saved):
    for seed in (0, 1):
        index, tensors = index_of(saved, seed), shard_of(saved, seed)
        views = 3 * 12  # epochs x images, in batches of 10 and 2
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            "order": (views,),
            "views": (views, 5),
            "starts": (7,),
            "mix": (6, 5),
            "values": (views, 3),
        }
        assert tensors["values"].dtype == torch.float16 and tensors["views"].dtype == torch.uint8
        torch.testing.assert_close(tensors["values"].float().sum(1), torch.ones(views), atol=2e-3, rtol=0)
        assert sorted(tensors["order"][:12].tolist()) == list(range(12)), "each image once an epoch"
        files = (saved / "labels" / f"seed{seed}").glob("*.safetensors")
        assert index["bytes"] == sum(path.stat().st_size for path in files)
        assert f"{index['bytes']:,} bytes" in saved.said


def test_students_of_labels_of_another_precision_are_another_run(saved):
    """Whoever made the labels: the students of both are in one folder, and each has a row."""
    saved.loading |= dict(precision="bf16", output_dir=saved / "both", seeds=1)
    saved.works("validate", **saved.loading)
    line = dict(LINE, seeds=1, precision="bf16", save_labels=saved / "half", output_dir=saved / "both")
    assert "is complete" not in saved.works("validate", **line)
    found = [json.loads(path.read_text()) for path in (saved / "both" / "results").glob("*.json")]
    precisions = {one["protocol"]: one["settings"].get("label_precision") for one in found}
    assert precisions == {"delt epochs=3 stored fp32": "fp32", "delt epochs=3 stored": None}
    assert "is complete" in saved.works("validate", **{**saved.loading, "load_labels": saved / "half"})


def test_labels_are_made_once_for_all_students(saved):
    line = dict(save_labels=saved / "labels", **LINE)
    before = snapshot(saved / "labels")
    saved.works("validate", output_dir=saved / "same", **line)
    saved.works("validate", output_dir=saved / "other", **{**line, "student_arch": "conv2"})
    assert snapshot(saved / "labels") == before


def unfinished(folder):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({"settings": index["settings"], "finished": False}))


def lost(folder):
    (folder / "00001.safetensors").unlink()


def damaged(folder):
    (folder / "00001.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("damage", [unfinished, lost, damaged])
def test_saving_again_makes_what_is_not_whole(place, monkeypatch, damage):
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)  # a shard an epoch
    line, folder = dict(save_labels=place / "labels", **LINE), place / "labels" / "seed0"
    place.works("validate", output_dir=place / "saved", **line)
    whole = snapshot(folder)
    damage(folder)
    place.works("validate", output_dir=place / "again", **line)
    now = snapshot(folder)
    assert {name: entry[0] for name, entry in now.items()} == {name: entry[0] for name, entry in whole.items()}
    assert curves(place, "again") == curves(place, "saved")
    if damage is not unfinished:
        assert [name for name in whole if now[name] != whole[name]] == ["00001.safetensors", "index.json"]


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_labels_from_a_step_on_are_the_rest_of_what_the_teacher_said(tmp_path, monkeypatch, loss):
    """As a student that was broken off asks for them: three epochs of three batches, a shard each."""
    monkeypatch.setattr("validate.label_writer.SHARD_BYTES", 1)
    batches = stream(noise_folder(tmp_path / "set"), epochs=3, batch_size=5, loss=loss, temperature=2.0)
    network = small_student().eval()
    teachers = Teachers(batches.geometry, ("a",), ("0",), (network,), (batches.geometry,))
    Writer(str(tmp_path / "labels"), teachers, None, False).save(batches)
    live, stored = list(teachers.labelled(batches)), StoredLabels(tmp_path / "labels", 0)
    assert len(live) == 9
    for start in (0, 1, 3, 4, 8, 9):
        found = list(stored.labelled(batches, start))
        assert len(found) == 9 - start
        for (step, target), (live_step, live_target) in zip(found, live[start:]):
            assert torch.equal(step.images, live_step.images) and torch.equal(step.labels, live_step.labels)
            torch.testing.assert_close(target, live_target, rtol=2e-3, atol=2e-3)


def test_top_k_keeps_the_largest_and_says_so(place):
    place.works("validate", save_labels=place / "labels", top_k=1, **LINE)
    tensors = shard_of(place)
    assert tensors["values"].shape == tensors["classes"].shape == (36, 1) and tensors["classes"].dtype == torch.uint8
    assert tensors["values"].min() > 1 / 3 - 1e-3, "the largest of three"
    assert result(place, "measured")["protocol"] == "delt epochs=3 stored top-1"
    place.works("validate", load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded", **LINE)
    assert curves(place, "loaded") == curves(place, "measured")


@few
@given(st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**30))
def test_the_other_classes_share_the_rest_evenly(kept, count, seed):
    whole = torch.randn(count, 10, generator=torch.Generator().manual_seed(seed)).softmax(1)
    order = whole.argsort(1, descending=True)[:, :kept]
    found = complete_probabilities(whole.gather(1, order), order, 10)
    for given_row, chosen, completed in zip(whole, order.tolist(), found):
        rest = 1 - sum(float(given_row[k]) for k in chosen)
        expected = [float(given_row[k]) if k in chosen else rest / (10 - kept) for k in range(10)]
        assert completed.tolist() == pytest.approx(expected, abs=1e-6)


@few
@given(st.integers(2, 300), st.integers(0, 2**30))
def test_stored_probabilities_of_all_classes_sum_to_1_again(count, seed):
    """As those of a live teacher do: in the file each is rounded to 11 bits."""
    whole = (3 * torch.randn(4, count, generator=torch.Generator().manual_seed(seed))).softmax(1)
    found = complete_probabilities(whole.half().float(), None, count)
    torch.testing.assert_close(found.sum(1), torch.ones(4), rtol=0, atol=2e-6)
    torch.testing.assert_close(found, whole, rtol=2e-3, atol=1e-6)


@example([255]).via("the last image that a byte names")
@example([256]).via("and the first that it does not")
@example([2**15])
@given(st.lists(st.integers(0, 70000), min_size=1))
def test_narrow_loses_nothing(numbers):
    assert _narrow(torch.tensor(numbers)).tolist() == numbers


# --- logits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_stored_are_logits_where_the_loss_compares_them(place, loss):
    for name, colour in COLOURS.items():
        draw(place.init / name, colour, 4, name, INPUT)
    more = {"temperature": 5} if loss == "kl" else {}
    place.works("validate", save_labels=place / "labels", **LINE, **BARE, loss=loss, **more)
    tensors, expected = shard_of(place), logits(place.teacher, sorted(place.init.glob("*/*.png")), whole=True)
    expected = expected if loss == "mse" else (expected / 5).softmax(1)
    torch.testing.assert_close(tensors["values"].float(), expected[tensors["order"].long()], rtol=2e-3, atol=2e-3)
    sums = tensors["values"].float().sum(1)
    assert ((sums - 1).abs() < 5e-3).all() == (loss == "kl")


def test_a_student_of_stored_logits_is_that_of_the_live_teacher(place):
    line = dict(**LINE, loss="mse", class_weight=0.1)
    place.works("validate", output_dir=place / "live", **line)
    place.works("validate", save_labels=place / "labels", output_dir=place / "saved", **line)
    place.teacher.unlink()
    place.works("validate", load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded", **line)
    assert curves(place, "loaded") == curves(place, "saved")
    for (_, kept), (_, exact) in zip(curves(place, "saved"), curves(place, "live")):
        assert kept == pytest.approx(exact, rel=0.01)


def test_stored_logits_keep_all_classes(place):
    refused(place, "validate", "--top-k", "logits", save_labels=place / "labels", loss="mse", top_k=2, **LINE)


# --- labels that do not serve ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(epochs=4), ["epochs", "3 -> 4"]),
        (dict(min_scale=0.5), ["min_scale"]),
        (dict(max_scale=0.75), ["max_scale"]),
        (dict(flip=0), ["flip"]),
        (dict(mix="mixup", temperature=20), ["mix"]),
        (dict(shuffle_patches=2), ["shuffle_patches"]),
        (dict(tiles=2), ["tiles"]),
        (dict(batch_augment="dsa"), ["batch_augment"]),
        (dict(rand_augment="none"), ["rand_augment"]),
        (dict(loss="mse"), ["loss", "kl -> mse"]),
        (dict(temperature=4), ["temperature"]),
        (dict(seeds=3), ["seed 2", "--save-labels"]),
        (dict(mean=(0.1, 0.2, 0.3)), ["mean"]),
        (dict(input_size=28), ["input_size"]),
        (dict(top_k=2), ["--top-k", "--save-labels"]),
        (dict(protocol="hard"), ["soft"]),
        (dict(teacher_path="t.pth"), ["no teacher"]),
        (dict(protocol=["delt", "rded"]), ["one"]),
        (dict(save_labels="x"), ["exclude"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_labels_of_another_run_are_refused(saved, changes, words):
    refused(saved, "validate", *words, **{**saved.loading, **changes})


def test_labels_of_other_images_are_refused(saved):
    refused(saved, "validate", "images", **{**saved.loading, "syn_dir": saved.train, "ipc": 4})


def test_students_and_labels_of_squashed_images_are_not_taken_for_those_of_their_middle(place):
    """Earlier versions squashed whole images that are not square; square ones are shown as ever."""
    line = dict(LINE, seeds=1, **BARE)
    place.works("validate", **line, save_labels=place / "square", output_dir=place / "square results")
    for path in place.init.glob("ant/*.png"):
        Image.open(path).resize((40, 16)).save(path)
    place.works("validate", **line, save_labels=place / "labels")
    path = place / "labels" / "seed0" / "index.json"
    index = index_of(place)
    own, square = result(place)["settings"], result(place, "square results")["settings"]
    assert own.keys() - square.keys() == {"whole_images"} == index["settings"].keys() & {"whole_images"}
    assert shard_of(place)["views"][:, :4].unique(dim=0).tolist() == [[0, 0, 16, 16], [0, 12, 16, 16]]
    index["settings"].pop("whole_images")
    path.write_text(json.dumps(index))
    loading = dict(line, load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded")
    refused(place, "validate", "another run", "whole_images", **loading)


def of_other_versions(place, **versions):
    for path in (place / "labels").glob("*/index.json"):
        index = json.loads(path.read_text())
        path.write_text(json.dumps({**index, "versions": {**index["versions"], **versions}}))


def test_views_that_other_library_versions_drew_are_refused(saved):
    own = index_of(saved)["versions"]["timm"]
    of_other_versions(saved, timm="0.1.2")
    refused(saved, "validate", "timm", "0.1.2", own, "--save-labels", **saved.loading)
    # The command that made them would train on other views than those that were labelled, too.
    outcome = saved.run("validate", save_labels=saved / "labels", output_dir=saved / "again", **LINE)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1 and "0.1.2" in outcome.err
    of_other_versions(saved, timm=own, python="3.1.4")  # which draws nothing
    saved.works("validate", **saved.loading)
    assert curves(saved, "loaded") == curves(saved, "saved")


@pytest.mark.parametrize(
    "views, accepted", [(dict(rand_augment="none"), True), (dict(rand_augment="none", shuffle_patches=2), False)]
)
def test_where_all_that_was_drawn_is_stored_the_versions_do_not_matter(place, views, accepted):
    place.works("validate", save_labels=place / "labels", output_dir=place / "saved", **LINE, **views)
    of_other_versions(place, torch="1.0.0", timm="0.1.2")
    loading = dict(load_labels=place / "labels", teacher_path=None, output_dir=place / "loaded", **LINE, **views)
    if accepted:
        place.works("validate", **loading)
        assert curves(place, "loaded") == curves(place, "saved")
    else:
        refused(place, "validate", "timm", "torch", "1.0.0", **loading)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").write_text("{"),
        lambda folder: (folder / "index.json").write_text("[]"),
        lambda folder: (folder / "index.json").write_text('{"finished": true}'),
        lambda folder: (folder / "00000.safetensors").write_bytes(b"nothing"),
        lambda folder: (folder / "00000.safetensors").unlink(),
    ],
)
def test_damaged_labels_are_named(saved, damage):
    """Before the first student, not after it."""
    whole = snapshot(saved / "labels")
    damage(saved / "labels" / "seed1")
    refused(saved, "validate", "seed1", **saved.loading)
    for name, entry in whole.items():
        if len(entry) == 2:
            (saved / "labels" / name).write_bytes(entry[0])
    saved.works("validate", **saved.loading)


@pytest.mark.parametrize("entry", ["versions", "archs", "shards", "classes", "num_classes", "stem", "settings"])
def test_an_index_that_lacks_an_entry_is_named(saved, entry):
    index = index_of(saved, 1)
    del index[entry]
    (saved / "labels" / "seed1" / "index.json").write_text(json.dumps(index))
    refused(saved, "validate", "seed1", "index.json", "--save-labels", **saved.loading)


# --- labels of students that are complete ------------------------------------------------------------------------


def test_the_command_that_made_damaged_labels_mends_them(saved):
    [shard] = index_of(saved)["shards"]
    path = saved / "labels" / "seed0" / shard["file"]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(saved, "validate", "--save-labels", **saved.loading)
    saved.works("validate", save_labels=saved / "labels", output_dir=saved / "saved", **LINE)
    assert path.read_bytes() == content
    saved.works("validate", **saved.loading)


def test_whole_labels_of_complete_students_may_be_of_other_versions(saved):
    of_other_versions(saved, timm="0.1.2")
    said = saved.works("validate", save_labels=saved / "labels", output_dir=saved / "saved", **LINE)
    assert said.count("is complete") == LINE["seeds"]


def test_labels_of_complete_students_are_saved_where_they_are_asked_for(saved):
    out = saved.works("validate", save_labels=saved / "others", output_dir=saved / "saved", **LINE)
    assert "seed 0 is complete" in out
    for seed in range(LINE["seeds"]):
        name = index_of(saved, seed)["shards"][0]["file"]
        made, again = (saved / labels / f"seed{seed}" / name for labels in ("labels", "others"))
        assert made.read_bytes() == again.read_bytes()
