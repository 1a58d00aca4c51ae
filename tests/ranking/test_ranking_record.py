"""Who scored a ranking file is known beside it, and nothing else is served from it in silence."""

import csv
import hashlib
import json
import shutil

import pytest
import torch
from PIL import Image

from conftest import CLASSES, COLOURS, INPUT, MEAN, STD, draw, images, snapshot
from ranking.score import Scorer
from refusals import refused
from utils.data import image_folder


def record_of(place):
    return json.loads((place / "ranking.csv.json").read_text())


def changed_teacher(place, name="other.pth", order=(0, 1, 2)):
    """The teacher with its last layer shifted a little, and its outputs in another order."""
    content = torch.load(place.teacher, weights_only=True)
    for entry in ("classifier.weight", "classifier.bias"):
        content["model"][entry] = content["model"][entry][list(order)]
    content["model"]["classifier.bias"][0] += 0.5
    torch.save(content, place / name)
    return place / name


def nameless(path):
    torch.save(torch.load(path, weights_only=True)["model"], path)
    return dict(teacher_path=path, teacher_arch="conv3", input_size=INPUT, mean=MEAN, std=STD)


@pytest.fixture
def ranked(place):
    """Scores on disk, and nothing selected yet."""
    place.works("ranking", output_dir=None)
    return place


@pytest.fixture
def foreign(ranked):
    """The same scores, as another tool would leave them."""
    (ranked / "ranking.csv.json").unlink()
    return ranked


@pytest.fixture
def no_scoring(monkeypatch):
    def score(*_):
        raise AssertionError("it scores")

    monkeypatch.setattr(Scorer, "score", score)


def test_the_record_says_what_scored_which_images(ranked):
    found = record_of(ranked)
    settings = found["settings"]
    assert settings["teacher"] == hashlib.sha256(ranked.teacher.read_bytes()).hexdigest()
    assert (settings["input_size"], settings["mean"], settings["std"]) == (INPUT, list(MEAN), list(STD))
    assert settings["classes"] == list(CLASSES) and found["arch"] == "conv3"
    assert found["sha256"] == hashlib.sha256((ranked / "ranking.csv").read_bytes()).hexdigest()


# --- served ----------------------------------------------------------------------------------------------------------


def test_the_same_teacher_is_served(ranked, no_scoring):
    """As a script does that selects a baseline: another criterion by the same scores."""
    before = snapshot(ranked.root)
    ranked.works("ranking", criterion="top")
    with open(ranked / "ranking.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    best = [row["img_path"] for name in CLASSES for row in [row for row in rows if row["class"] == name][:4]]
    copies = images(ranked / "selected")
    assert list(copies.values()) == [(ranked.train / path).read_bytes() for path in best]
    after = snapshot(ranked.root)
    assert {name: after[name] for name in before} == before


def test_the_same_images_elsewhere_and_no_teacher_are_served(ranked, no_scoring):
    shutil.copytree(ranked.train, ranked / "copy")
    ranked.works("ranking", train_dir=ranked / "copy", teacher_path=None)
    assert len(images(ranked / "selected")) == 12


def test_a_nameless_teacher_is_served_without_decoding_images_for_their_size(place, monkeypatch):
    line = {**nameless(changed_teacher(place)), "input_size": None}
    for name, colour in COLOURS.items():
        shutil.rmtree(place.train / name)
        draw(place.train / name, colour, 7, name, INPUT)
    place.works("ranking", **line, output_dir=None)
    monkeypatch.setattr("utils.data.image_folder.read_rgb", lambda path: 1 / 0)
    place.works("ranking", **line)
    assert len(images(place / "selected")) == 12


@pytest.mark.parametrize("criterion", ["random", "k-center", "easy-herding"])
def test_a_criterion_without_scores_leaves_the_file_alone_and_says_so(ranked, criterion):
    before = {name: (ranked / name).read_bytes() for name in ("ranking.csv", "ranking.csv.json")}
    said = ranked.works("ranking", criterion=criterion, teacher_path=changed_teacher(ranked))
    assert f"--ranking-file {ranked / 'ranking.csv'} is left as it is" in said
    assert len(images(ranked / "selected")) == 12
    assert json.loads((ranked / "selected" / "manifest.json").read_text())["ranking_sha256"] is None
    assert {name: (ranked / name).read_bytes() for name in before} == before


# --- not served in silence -------------------------------------------------------------------------------------------


def test_another_teacher_is_refused(ranked):
    other = changed_teacher(ranked)
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    words = ["teacher: ", digest[:12], "--overwrite", "ranking.csv.json"]
    refused(ranked, "ranking", ranked / "ranking.csv", *words, teacher_path=other)


def test_overwrite_scores_anew(ranked):
    other = changed_teacher(ranked)
    old = (ranked / "ranking.csv").read_bytes()
    ranked.works("ranking", teacher_path=other, overwrite=True)
    ranked.works("ranking", teacher_path=other, ranking_file=ranked / "fresh.csv", output_dir=ranked / "fresh")
    assert (ranked / "ranking.csv").read_bytes() == (ranked / "fresh.csv").read_bytes() != old
    assert images(ranked / "selected") == images(ranked / "fresh")
    assert record_of(ranked)["settings"]["teacher"] == hashlib.sha256(other.read_bytes()).hexdigest()
    assert not list(ranked.root.rglob(".*"))


def test_overwrite_keeps_scores_that_serve(ranked, no_scoring):
    (ranked / "selected" / "ant").mkdir(parents=True)
    (ranked / "selected" / "manifest.json").write_text(json.dumps({"settings": {"criterion": "top"}}))
    ranked.works("ranking", overwrite=True)
    assert len(images(ranked / "selected")) == 12


def bitmaps(place):
    """Images of which all have the same number of bytes."""
    for path in sorted(place.train.glob("*/*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    place.works("ranking", output_dir=None)
    return place.train / "ant" / "ant0.bmp"


def test_images_that_were_replaced_in_place_are_noticed(place):
    path = bitmaps(place)
    size = path.stat().st_size
    Image.new("RGB", Image.open(path).size, (1, 2, 3)).save(path)
    assert path.stat().st_size == size
    refused(place, "ranking", "images: ", "--overwrite")
    refused(place, "ranking", "images: ", teacher_path=None)


def test_of_many_images_the_sizes_are_compared(place, monkeypatch):
    monkeypatch.setattr(image_folder, "HASHED_BYTES", 1000)
    path = bitmaps(place)
    Image.new("RGB", Image.open(path).size, (1, 2, 3)).save(path)
    place.works("ranking")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
    refused(place, "ranking", "images: ", output_dir=place / "again")


def test_more_images_and_another_class_are_noticed(ranked):
    draw(ranked.train / "ant" / "more", (1, 2, 3), 1, "more")
    refused(ranked, "ranking", "images: ")
    draw(ranked.train / "wasp", (1, 2, 3), 4, "wasp")
    refused(ranked, "ranking", "wasp", teacher_path=None)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mean": (0.1, 0.2, 0.3)}, ["mean: [0.4, 0.5, 0.6] -> [0.1, 0.2, 0.3]"]),
        ({"std": (0.1, 0.2, 0.3)}, ["std"]),
        ({"classes": "order.txt"}, ["classes: "]),
        ({"teacher_arch": "conv3_w128"}, ["arch: conv3 -> conv3_w128"]),
    ],
    ids=["mean", "std", "order of classes", "architecture"],
)
def test_another_reading_of_the_same_weights_is_noticed(place, change, words):
    line = nameless(changed_teacher(place))
    place.works("ranking", **line, output_dir=None)
    (place / "order.txt").write_text("\n".join(reversed(CLASSES)))
    change = {name: place / value if name == "classes" else value for name, value in change.items()}
    refused(place, "ranking", *words, **{**line, **change})


DESCRIBING = [dict(classes="nofile"), dict(mean=MEAN), dict(std=STD), dict(stem="cifar"), dict(teacher_arch="conv3")]


@pytest.mark.parametrize("flags", DESCRIBING, ids=str)
@pytest.mark.parametrize("criterion", ["top", "random"])
def test_what_describes_a_teacher_is_refused_where_none_is_given(ranked, flags, criterion):
    source = {"top": "the scores are those of", "random": "nothing is scored"}[criterion]
    flag = "--" + next(iter(flags)).replace("_", "-")
    refused(ranked, "ranking", flag, source, "--teacher-path", criterion=criterion, teacher_path=None, **flags)


@pytest.mark.parametrize("line", [dict(criterion="random"), dict(teacher_path=None)], ids=str)
def test_an_architecture_that_is_not_known_is_refused_where_nothing_is_scored(ranked, line):
    refused(ranked, "ranking", "'nonsense' is not known", teacher_arch="nonsense", **line)


@pytest.mark.parametrize("overwrite", [None, True])
def test_without_a_teacher_scores_of_another_input_size_are_noticed(ranked, overwrite):
    line = dict(teacher_path=None, overwrite=overwrite)
    refused(ranked, "ranking", f"input_size: {INPUT} -> {INPUT + 1}", "--teacher-path", input_size=INPUT + 1, **line)
    ranked.works("ranking", teacher_path=None, input_size=INPUT)


def test_another_precision_than_that_of_the_scores_is_said(ranked):
    about = record_of(ranked)
    assert "made in" not in ranked.works("ranking", precision="fp32")
    (ranked / "ranking.csv.json").write_text(json.dumps({**about, "precision": "bf16"}))
    said = ranked.works("ranking", precision="fp32")
    assert "made in bf16; for fp32 give another --ranking-file" in said
    assert "made in" not in ranked.works("ranking", precision="auto")


def test_a_record_of_an_earlier_version_serves_a_nameless_teacher(place):
    """Its settings had no architecture; what stands beside them has."""
    line = nameless(changed_teacher(place))
    place.works("ranking", **line, output_dir=None)
    about = record_of(place)
    del about["settings"]["arch"]
    (place / "ranking.csv.json").write_text(json.dumps(about))
    refused(place, "ranking", "arch: conv3 -> conv3_w128", **{**line, "teacher_arch": "conv3_w128"})
    place.works("ranking", **line)
    assert len(images(place / "selected")) == 12


# --- files that nobody vouches for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [None, True])
def test_a_file_of_another_tool_is_taken_as_it_is_and_said_so(foreign, no_scoring, overwrite):
    before = (foreign / "ranking.csv").read_bytes()
    other = changed_teacher(foreign)
    said = foreign.works("ranking", teacher_path=other, overwrite=overwrite)
    [line] = [line for line in said.splitlines() if "taken as they are" in line]
    assert str(foreign / "ranking.csv") in line and "nothing says what made them" in line
    assert (foreign / "ranking.csv").read_bytes() == before, "no run made it, so none replaces it"
    assert not (foreign / "ranking.csv.json").exists() and len(images(foreign / "selected")) == 12


def test_a_file_that_was_edited_is_taken_as_it_is_and_said_so(ranked, no_scoring):
    text = (ranked / "ranking.csv").read_text()
    (ranked / "ranking.csv").write_text(text.replace("ant/ant0.png,ant,", "ant/ant0.png,ant,1"))
    assert "they have changed, and are taken as they are" in ranked.works("ranking")


def test_beside_foreign_scores_the_order_of_a_nameless_teacher_is_judged(foreign):
    right = foreign.works("ranking", **nameless(changed_teacher(foreign)))
    assert "is right about" in right
    wrong = nameless(changed_teacher(foreign, "wrong.pth", (1, 2, 0)))
    refused(foreign, "ranking", "another order", "--classes FILE", **wrong, output_dir=foreign / "x")


def test_herding_by_the_answers_of_a_nameless_teacher_judges_its_order(foreign):
    line = dict(criterion="easy-herding", ranking_file=None)
    foreign.works("ranking", **line, **nameless(changed_teacher(foreign)), output_dir=foreign / "right")
    wrong = nameless(changed_teacher(foreign, "wrong.pth", (1, 2, 0)))
    refused(foreign, "ranking", "another order", "--classes FILE", **line, **wrong, output_dir=foreign / "x")


def test_scores_near_chance_are_said(foreign):
    paths = sorted(path.relative_to(foreign.train).as_posix() for path in foreign.train.glob("*/*"))
    for score, said in ((0.05, True), (0.3, True), (0.8, False), (-3, False)):
        rows = [f"{path},{path.split('/')[0]},{score + k / 1000}" for k, path in enumerate(paths)]
        (foreign / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))
        out = foreign.works("ranking", teacher_path=None, overwrite=True)
        assert ("near chance (0.333)" in out) == said, score


def test_a_teacher_that_is_given_has_to_be_there(foreign):
    refused(foreign, "ranking", foreign / "nowhere.pth", "no such checkpoint", teacher_path=foreign / "nowhere.pth")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3, "sha256": "0"}'])
@pytest.mark.parametrize("scores", [True, False])
def test_what_is_no_record_is_named_and_left_alone(ranked, content, scores):
    if not scores:
        (ranked / "ranking.csv").unlink()
    (ranked / "ranking.csv.json").write_text(content)
    refused(ranked, "ranking", ranked / "ranking.csv.json")
