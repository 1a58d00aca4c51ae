"""ranking as its users meet it: a command line in, scores and a selection out."""

import csv
import hashlib
import json
import math
import shutil
import statistics

import pytest
import torch
from PIL import Image

from conftest import CLASSES, COLOURS, INPUT, MEAN, STD, draw, images, snapshot
from helpers import CPU
from plain_teacher import logits
from ranking.coreset import herding, k_center
from refusals import refused
from utils.data.image_folder import ImageFolder
from utils.nets.features import FeatureReader, extractor
from utils.nets.teacher import load_teacher

IPC = 4


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows_of(path, name):
    return [row for row in table(path) if row["class"] == name]


def medium(rows, ipc):
    """Counted from 0 in ascending order: mid, mid+1, mid-1, mid+2, ... with mid = ceil(n / 2)."""
    ascending = sorted(rows, key=lambda row: (float(row["score"]), row["img_path"]))
    mid = -(-len(rows) // 2)
    places = [mid, mid + 1, mid - 1, mid + 2, mid - 2]
    return [ascending[k]["img_path"] for k in places][:ipc]


def write_ranking(place, rows):
    (place / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))


@pytest.fixture(scope="module")
def done(stock, tmp_path_factory):
    """A place where ranking has run."""
    place = stock.copied(tmp_path_factory.mktemp("ranked") / "bugs")
    place.works("ranking")
    return place


# --- scores and the selection by them --------------------------------------------------------------------------------


def test_the_ranking_file_lists_every_image_by_class_then_by_score(done):
    assert (done / "ranking.csv").read_text().splitlines()[0] == "img_path,class,score"
    rows = table(done / "ranking.csv")
    assert sorted(row["img_path"] for row in rows) == [f"{name}/{name}{k}.png" for name in CLASSES for k in range(7)]
    assert all(row["img_path"].split("/")[0] == row["class"] for row in rows)
    assert rows == sorted(rows, key=lambda row: (row["class"], -float(row["score"])))


def test_a_score_is_the_teachers_probability_of_the_images_class(done):
    rows = table(done / "ranking.csv")
    probabilities = logits(done.teacher, [done.train / row["img_path"] for row in rows]).softmax(1)
    expected = [probabilities[k, CLASSES.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05


def test_the_selection_is_the_medium_images_as_they_were(done):
    for name in CLASSES:
        chosen = medium(rows_of(done / "ranking.csv", name), IPC)
        copies = sorted((done / "selected" / name).iterdir())
        assert [copy.name[:4] for copy in copies] == ["000_", "001_", "002_", "003_"]
        assert [copy.read_bytes() for copy in copies] == [(done.train / path).read_bytes() for path in chosen]


def test_the_manifest_names_what_was_chosen_and_the_bytes_of_every_copy(done):
    manifest = json.loads((done / "selected" / "manifest.json").read_text())
    assert manifest["finished"] and manifest["seconds"] >= 0
    assert (manifest["settings"]["criterion"], manifest["settings"]["ipc"]) == ("medium", IPC)
    assert manifest["settings"]["images"] == {
        name: medium(rows_of(done / "ranking.csv", name), IPC) for name in CLASSES
    }
    assert manifest["ranking_sha256"] == hashlib.sha256((done / "ranking.csv").read_bytes()).hexdigest()
    copies = images(done / "selected")
    assert len(copies) == 3 * IPC
    assert manifest["sha256"] == {path: hashlib.sha256(content).hexdigest() for path, content in copies.items()}


def test_nothing_hidden_is_left(done):
    assert not list(done.root.rglob(".*"))


def test_ranking_looks_at_the_class_that_the_teacher_calls_so(place):
    classes = place.reorder_teacher()
    place.works("ranking")
    rows = table(place / "ranking.csv")
    probabilities = logits(place.teacher, [place.train / row["img_path"] for row in rows]).softmax(1)
    expected = [probabilities[k, classes.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert statistics.mean(expected) > 0.4  # as it could not be of another class


# --- a ranking file that is there ------------------------------------------------------------------------------------


@pytest.fixture
def ranked(place):
    """A ranking file as a user's own tool may write it: another order of rows, equal scores among them."""
    scores = [0.5, 0.25, 0.25, 1e-9, 0.75, 0.125, 1]
    write_ranking(
        place, [f"{name}/{name}{k}.png,{name},{score}" for k, score in enumerate(scores) for name in reversed(CLASSES)]
    )
    return place


@pytest.mark.parametrize("criterion, chosen", [("medium", [0, 4, 2, 6]), ("top", [6, 4, 0, 1]), ("min", [3, 5, 1, 2])])
def test_a_ranking_file_that_is_there_is_used_without_a_teacher(ranked, criterion, chosen):
    before = (ranked / "ranking.csv").read_bytes()
    ranked.works("ranking", teacher_path=None, criterion=criterion)
    for name in CLASSES:
        copies = sorted((ranked / "selected" / name).iterdir())
        originals = [(ranked.train / name / f"{name}{k}.png").read_bytes() for k in chosen]
        assert [copy.read_bytes() for copy in copies] == originals
    assert (ranked / "ranking.csv").read_bytes() == before


def test_a_ranking_file_with_too_few_images_of_some_classes(place):
    """One that lists a part of the images: the classes are named, with their counts."""
    listed = {"ant": 4, "moth": 2, "zebra": 0}
    write_ranking(place, [f"{name}/{name}{k}.png,{name},0.{k}" for name, n in listed.items() for k in range(n)])
    before = snapshot(place.root)
    outcome = place.run("ranking", ipc=3)
    assert outcome.code == 2 and snapshot(place.root) == before
    for words in ("moth (2)", "zebra (0)", "--ipc 3"):
        assert words in outcome.err
    assert "ant (" not in outcome.err


def test_ranking_copies_again_what_is_lost_from_a_selection(ranked):
    ranked.works("ranking")
    whole = images(ranked / "selected")
    shutil.rmtree(ranked / "selected" / "ant")
    sorted((ranked / "selected" / "moth").iterdir())[1].write_bytes(b"damaged")
    ranked.works("ranking")
    assert images(ranked / "selected") == whole


def test_class_names_are_text_whatever_they_look_like(place):
    for old, new in zip(CLASSES, ("007", "NA", "1e3")):
        (place.train / old).rename(place.train / new)
    paths = sorted(place.train.glob("*/*"))
    write_ranking(place, [f"{path.parent.name}/{path.name},{path.parent.name},0.{k}" for k, path in enumerate(paths)])
    place.works("ranking", teacher_path=None)
    folders = sorted(folder.name for folder in (place / "selected").iterdir() if folder.is_dir())
    assert folders == ["007", "1e3", "NA"]


def test_scores_alone(place):
    place.works("ranking", output_dir=None)
    assert len(table(place / "ranking.csv")) == 21 and not (place / "selected").exists()
    assert not list(place.root.rglob(".*"))


@pytest.mark.parametrize("criterion", ["random", "herding"])
def test_a_criterion_that_scores_nothing_needs_a_place_for_its_images(place, criterion):
    refused(place, "ranking", f"--criterion {criterion} scores nothing", criterion=criterion, output_dir=None)


def test_a_selection_alone(done, place):
    place.works("ranking", ranking_file=None)
    assert images(place / "selected") == images(done / "selected")
    assert not (place / "ranking.csv").exists() and not list(place.root.rglob(".*"))


# --- other criteria --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, dict(candidates=6, tiles=2, ipc=1), dict(candidates=4, crops=2)], ids=str)
def test_a_selection_that_is_there_is_not_scored_again(place, more):
    line = dict(criterion="top", ranking_file=None, **more)
    assert " by " in place.works("ranking", **line)
    said = place.works("ranking", **line)
    assert "is complete" in said and " by " not in said
    draw(place.train / "ant", COLOURS["moth"], 1, "one more")
    assert " by " in place.run("ranking", **line).out, "of other images it is another choice"


def test_random_needs_no_scores_and_follows_its_seed(place):
    sets = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        line = dict(teacher_path=None, ranking_file=None, criterion="random")
        place.works("ranking", **line, seed=seed, output_dir=place / folder)
        sets[folder] = images(place / folder)
    assert sets["a"] == sets["b"] != sets["c"]
    drawn = set()
    for name in CLASSES:
        originals = {path.read_bytes(): path.stem.removeprefix(name) for path in (place.train / name).iterdir()}
        chosen = [originals[data] for path, data in sets["a"].items() if path.startswith(name)]
        assert len(chosen) == len(set(chosen)) == 4
        drawn.add(tuple(chosen))
    assert len(drawn) > 1  # each class has a draw of its own


@pytest.mark.parametrize("criterion, function", [("herding", herding), ("k-center", k_center)])
def test_ranking_selects_a_coreset(place, criterion, function):
    place.works("ranking", criterion=criterion, ranking_file=None)
    teacher = load_teacher(None, place.teacher)
    reader = FeatureReader(extractor(teacher.network), teacher.geometry, CPU)
    found = dict(reader.by_class(ImageFolder(place.train, "--train-dir"), ""))
    expected = {
        f"{name}/{position:03d}_{name}{index}.png"
        for label, name in enumerate(CLASSES)
        for position, index in enumerate(function(found[label], 4))
    }
    assert set(images(place / "selected")) == expected
    assert json.loads((place / "selected" / "manifest.json").read_text())["settings"]["criterion"] == criterion
    before = snapshot(place.root)
    assert "complete" in place.works("ranking", criterion=criterion, ranking_file=None)
    assert snapshot(place.root) == before


def test_easy_herding_is_herding_of_the_images_that_the_ranking_file_has_on_top(place):
    """The scores of one run and herding of a folder with the upper half by another say what it has to select."""
    place.works("ranking")
    scores = {row["img_path"]: float(row["score"]) for row in table(place / "ranking.csv")}
    for name in CLASSES:
        own = sorted((path for path in scores if path.startswith(f"{name}/")), key=lambda path: (-scores[path], path))
        for path in own[: math.ceil(len(own) / 2)]:
            (place / "easier" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(place.train / path, place / "easier" / path)
    line = dict(ranking_file=None, ipc=2)
    place.works("ranking", **line, train_dir=place / "easier", criterion="herding", output_dir=place / "expected")
    place.works("ranking", **line, criterion="herding", output_dir=place / "of_all")
    place.works("ranking", **line, criterion="easy-herding", output_dir=place / "found")
    assert images(place / "found") == images(place / "expected") != images(place / "of_all")
    before = snapshot(place.root)
    assert "complete" in place.works("ranking", **line, criterion="easy-herding", output_dir=place / "found")
    assert snapshot(place.root) == before


def test_a_coreset_needs_a_place(place):
    outcome = place.run("ranking", criterion="herding", output_dir=None)
    assert outcome.code == 2 and "--output-dir" in outcome.err


# --- teachers that others trained ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 3},
        lambda weights: {"model": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}},
    ],
    ids=["bare", "state_dict", "compiled"],
)
def test_weights_without_facts_serve_and_what_was_assumed_is_said(place, wrap):
    bare = place / "bare.pth"
    torch.save(wrap(torch.load(place.teacher, weights_only=True)["model"]), bare)
    for name, colour in COLOURS.items():
        shutil.rmtree(place.train / name)
        draw(place.train / name, colour, 5, f"small {name}", INPUT)
    out = place.works("ranking", teacher_path=bare, teacher_arch="conv3")
    [line] = [line for line in out.splitlines() if "assumed" in line]
    assert all(words in line for words in (str(bare), f"{INPUT}", "ImageNet", "0.485", "0.229"))
    rows = table(place / "ranking.csv")
    files = [place.train / row["img_path"] for row in rows]
    probabilities = logits(place.teacher, files, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).softmax(1)
    expected = [probabilities[k, CLASSES.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)


def test_flags_fill_what_bare_weights_leave_open(place):
    bare = place / "bare.pth"
    torch.save(torch.load(place.teacher, weights_only=True)["model"], bare)
    place.works("ranking")
    facts = dict(teacher_arch="conv3", input_size=INPUT, mean=MEAN, std=STD)
    place.works("ranking", teacher_path=bare, **facts, ranking_file=place / "other.csv", output_dir=None)
    assert (place / "other.csv").read_bytes() == (place / "ranking.csv").read_bytes()


def test_images_of_other_sizes_are_scored_by_their_centre(place):
    """The shorter side resized, then the centre: for a wide image that is not the whole of it."""
    colour = Image.open(place.train / "ant" / "ant0.png")
    colour.resize((24, 16)).save(place.train / "ant" / "wide.png")
    place.works("ranking", output_dir=None)
    [row] = [row for row in table(place / "ranking.csv") if row["img_path"] == "ant/wide.png"]
    expected = logits(place.teacher, [place.train / "ant" / "wide.png"]).softmax(1)[0, 0].item()
    assert float(row["score"]) == pytest.approx(expected, abs=1e-5)
