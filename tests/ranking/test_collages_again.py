"""Collages made by a command that found some: those of other originals are not kept, and their size is the same."""

import json
import os
import shutil
import signal

import pytest
from PIL import Image

from conftest import COLOURS, INPUT, PIXELS, draw, images, snapshot
from ranking import collage

TILED = dict(criterion="random", tiles=2, ipc=1, ranking_file=None, teacher_path=None)


def fresh(place, **line):
    """The collages that the same command makes where there are none."""
    place.works("ranking", **line, output_dir=place / "fresh")
    return images(place / "fresh")


def redraw(folder):
    """Other images under the same names."""
    for name, colour in COLOURS.items():
        draw(folder / name, colour, 7, f"other {name}")


def of_tiles(place):
    """By the manifest: collage -> the SHA-256 of its originals."""
    tiles = json.loads((place / "selected" / "manifest.json").read_text())["tiles"]
    return {path: [tile["sha256"] for tile in own] for path, own in tiles.items()}


# --- of other originals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"overwrite": True}, {"crops": 2, "seed": 3}], ids=str)
def test_collages_of_another_folder_with_the_same_names_are_made_anew(place, more):
    line = {**TILED, **more}
    place.works("ranking", **line)
    before, named = images(place / "selected"), of_tiles(place)
    redraw(place / "other")
    line["train_dir"] = place / "other"
    place.works("ranking", **line)
    found = images(place / "selected")
    assert found == fresh(place, **line) and found.keys() == before.keys()
    assert not set(found.values()) & set(before.values())
    assert all(set(named[path]).isdisjoint(own) for path, own in of_tiles(place).items())


def test_of_one_replaced_original_only_its_collage_is_made_anew(place):
    place.works("ranking", **TILED)
    before = snapshot(place / "selected")
    manifest = json.loads((place / "selected" / "manifest.json").read_text())
    original = place.train / manifest["tiles"][next(iter(images(place / "selected")))][3]["path"]
    Image.new("RGB", (16, 16), (9, 8, 7)).save(original)
    place.works("ranking", **TILED)
    assert images(place / "selected") == fresh(place, **TILED)
    after = snapshot(place / "selected")
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {next(iter(images(place / "selected"))), "manifest.json"}
    again = snapshot(place.root)
    assert "complete" in place.works("ranking", **TILED)
    assert snapshot(place.root) == again


def test_what_a_killed_process_left_of_other_originals_is_made_anew(place, monkeypatch):
    save = collage.save_image

    def then_die(*args, **options):
        save(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(collage, "save_image", then_die)
    child = place.fork("ranking", **TILED)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert images(place / "selected"), "it left some"
    shutil.rmtree(place.train)
    redraw(place.train)
    place.works("ranking", **TILED)
    assert images(place / "selected") == fresh(place, **TILED)


# --- of another size -------------------------------------------------------------------------------------------------

OTHERS = dict(dataset="fashion_mnist_cut", tiles=2, ipc=1)  # images of 32 pixels, and the teacher's have 14


def sizes(folder):
    return {Image.open(folder / path).size for path in images(folder)}


@pytest.mark.parametrize("line", [{"criterion": "top"}, {"criterion": "top", "crops": 3}], ids=["images", "crops"])
def test_scores_that_are_there_give_collages_of_the_size_at_which_they_were_made(place, line):
    line = {**OTHERS, **line}
    place.works("ranking", **line)
    before = snapshot(place.root)
    assert "complete" in place.works("ranking", **line)
    assert snapshot(place.root) == before and sizes(place / "selected") == {(INPUT, INPUT)}
    place.works("ranking", **line, teacher_path=None, output_dir=place / "by_record")
    assert images(place / "by_record") == images(place / "selected")
    (place / "ranking.csv.json").unlink()
    place.works("ranking", **line, output_dir=place / "by_teacher")
    assert images(place / "by_teacher") == images(place / "selected")


@pytest.mark.parametrize("has_teacher, size", [(True, INPUT), (False, 32)])
def test_random_collages_have_the_teachers_size_before_the_data_sets(place, has_teacher, size):
    line = {**TILED, **OTHERS}
    place.works("ranking", **{**line, "teacher_path": place.teacher if has_teacher else None})
    assert sizes(place / "selected") == {(size, size)}


def test_a_size_that_is_given_wins_and_one_that_cannot_be_is_not_taken(place):
    line = dict(criterion="top", tiles=2, ipc=1, teacher_path=None)
    place.works("ranking", output_dir=None)
    place.works("ranking", **line, input_size=20)
    assert sizes(place / "selected") == {(20, 20)}
    record = json.loads((place / "ranking.csv.json").read_text())
    for value in ("16", -3, [14], True, None):
        record["settings"]["input_size"] = value
        (place / "ranking.csv.json").write_text(json.dumps(record))
        place.works("ranking", **line, output_dir=place / "own", overwrite=True)
        assert sizes(place / "own") == {(PIXELS, PIXELS)}, "the images' own"
