"""The times in ranking's records: summed over all processes and interruptions, none lost and none counted twice."""

import json

import pytest

from conftest import CLASSES
from ranking import selection
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch

LINE = dict(batch_size=2)  # 21 images: 11 batches, and three pieces of at most four


class Cut(Exception):
    pass


@pytest.fixture(autouse=True)
def laps(monkeypatch):
    """Each lap takes a second: a piece of scores, a class of features, and the copying of a selection."""
    monkeypatch.setattr(Stopwatch, "lap", lambda self: 1.0)


def manifest(place, name="selected"):
    return json.loads((place / name / "manifest.json").read_text())


def seconds(place, name="selected"):
    return manifest(place, name)["seconds"]


def cut(place, owner, name, function, **line):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, function)
        with pytest.raises(Cut):
            place.run("ranking", **LINE, **line)


def after_a_piece(self, number, content, save=SharedWork.save):
    save(self, number, content)
    raise Cut


def test_scores_and_selection(place):
    place.works("ranking", **LINE)
    assert json.loads((place / "ranking.csv.json").read_text())["seconds"] == 3
    assert seconds(place) == 4
    place.works("ranking", **LINE, criterion="top", output_dir=place / "top")
    assert seconds(place, "top") == 4, "its scores took as long, whoever made them"


@pytest.mark.parametrize(
    "line, total",
    [
        ({}, 4),
        ({"ranking_file": None}, 4),
        ({"ranking_file": None, "criterion": "herding"}, len(CLASSES) + 1),
        ({"ranking_file": None, "criterion": "random"}, 1),
    ],
    ids=["file", "no file", "features", "random"],
)
def test_after_interruptions(place, line, total):
    for _ in range(2 if line.get("criterion") != "random" else 0):
        cut(place, SharedWork, "save", after_a_piece, **line)
    place.works("ranking", **LINE, **line)
    assert seconds(place) == total


def test_an_interrupted_selection_goes_on_counting(place):
    def copies(*_):
        raise Cut

    cut(place, selection, "copy", copies)
    assert seconds(place) == 4 and not manifest(place)["finished"]
    place.works("ranking", **LINE)
    assert seconds(place) == 5 and manifest(place)["finished"]


def test_what_is_copied_again_is_added_and_a_complete_selection_stays(place):
    place.works("ranking", **LINE)
    before = (place / "selected" / "manifest.json").read_bytes()
    place.works("ranking", **LINE)
    assert (place / "selected" / "manifest.json").read_bytes() == before
    sorted((place / "selected" / "moth").iterdir())[0].unlink()
    place.works("ranking", **LINE)
    assert seconds(place) == 5


def test_of_scores_that_nobody_recorded_the_selection_alone_is_counted(place):
    place.works("ranking", **LINE, output_dir=None)
    (place / "ranking.csv.json").unlink()
    place.works("ranking", **LINE)
    assert seconds(place) == 1
