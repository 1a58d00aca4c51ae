"""The manifest of a coreset: what it says is checked before it is believed."""

import json

import pytest

from conftest import images, snapshot
from refusals import refused

LINE = dict(criterion="herding", ranking_file=None)


@pytest.fixture
def coreset(place):
    """A finished coreset; gives a function that changes its manifest."""
    place.works("ranking", **LINE)
    path = place / "selected" / "manifest.json"

    def change(edit):
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


def chosen(content):
    return content["settings"]["images"]


def to_another_class(content):
    chosen(content)["ant"][0] = chosen(content)["moth"][0]


def outside(content):
    chosen(content)["ant"][0] = "../teacher.pth"


def absolute(content):
    chosen(content)["ant"][0] = "/etc/hostname"


def hidden_way_out(content):
    chosen(content)["ant"][0] = "ant/../../teacher.pth"


def too_few(content):
    chosen(content)["moth"].pop()


def too_many(content):
    chosen(content)["moth"] *= 2


def twice(content):
    chosen(content)["moth"][0] = chosen(content)["moth"][1]


def another_type(content):
    chosen(content)["zebra"] = {"0": "zebra/zebra0.png"}


def numbers(content):
    chosen(content)["zebra"] = [0, 1, 2, 3]


def text(content):
    chosen(content)["zebra"] = "zebra/zebra0.png"


def another_class(content):
    chosen(content)["cat"] = chosen(content).pop("ant")


def no_classes(content):
    content["settings"]["images"] = []


def no_settings(content):
    content["settings"] = 3


FAULTS = (to_another_class, outside, absolute, hidden_way_out, too_few, too_many, twice, another_type, numbers, text)


@pytest.mark.parametrize("fault", [*FAULTS, another_class, no_classes, no_settings])
def test_a_selection_that_cannot_be_is_refused_and_can_be_made_anew(place, coreset, fault):
    before = images(place / "selected")
    coreset(fault)
    refused(place, "ranking", place / "selected" / "manifest.json", **LINE)
    if fault is not no_settings:  # no run's: such a folder is never emptied
        place.works("ranking", overwrite=True, **LINE)
        assert images(place / "selected") == before


def test_a_selection_that_is_as_it_was_is_not_touched(place, coreset):
    before = snapshot(place / "selected")
    assert "complete" in place.works("ranking", **LINE)
    assert snapshot(place / "selected") == before


@pytest.mark.parametrize("value", [3, None, {}, {"ant/000_ant0.png": "0" * 64}])
def test_digests_that_are_not_the_images_are_written_anew(place, coreset, value):
    expected = json.loads((place / "selected" / "manifest.json").read_text())["sha256"]
    coreset(lambda content: content.update(sha256=value))
    place.works("ranking", **LINE)
    assert json.loads((place / "selected" / "manifest.json").read_text())["sha256"] == expected


def test_short_classes_are_checked_as_they_were_selected(place):
    (place.train / "ant" / "ant0.png").unlink()
    for name, short in (("kept", "keep"), ("again", "repeat")):
        line = {**LINE, "output_dir": place / name, "ipc": 7, "short_classes": short}
        place.works("ranking", **line)
        assert "complete" in place.works("ranking", **line)
        path = place / name / "manifest.json"
        content = json.loads(path.read_text())
        chosen(content)["ant"][-1] = "ant/ant1.png" if chosen(content)["ant"][-1] != "ant/ant1.png" else "ant/ant2.png"
        path.write_text(json.dumps(content))
        refused(place, "ranking", path, **line)


# --- of crops, in collages -------------------------------------------------------------------------------------------

CROPS = {**LINE, "crops": 2, "tiles": 2, "ipc": 2}


def boxes(content):
    return content["settings"]["boxes"]


def another_box(content):
    boxes(content)["ant"][0] = [0, 0, 1, 1]


def half_a_box(content):
    boxes(content)["ant"][0] = boxes(content)["ant"][0][:2]


def no_numbers(content):
    boxes(content)["zebra"][1] = ["0", "0", "5", "5"]


def a_box_less(content):
    boxes(content)["moth"].pop()


def boxes_of_other_classes(content):
    boxes(content)["cat"] = boxes(content).pop("ant")


def no_boxes(content):
    del content["settings"]["boxes"]


def same_crop_twice(content):
    for facts in (chosen(content), boxes(content)):
        facts["ant"][0] = facts["ant"][1]


OF_CROPS = (another_box, half_a_box, no_numbers, a_box_less, boxes_of_other_classes, no_boxes, same_crop_twice)


@pytest.mark.parametrize("fault", [*OF_CROPS, outside, absolute, too_few])
def test_crops_that_cannot_be_are_refused_and_can_be_chosen_anew(place, fault):
    place.works("ranking", **CROPS)
    path, before = place / "selected" / "manifest.json", images(place / "selected")
    content = json.loads(path.read_text())
    fault(content)
    path.write_text(json.dumps(content))
    refused(place, "ranking", path, **CROPS)
    place.works("ranking", overwrite=True, **CROPS)
    assert images(place / "selected") == before


@pytest.mark.parametrize("entry", ["sha256", "tiles"])
def test_what_is_said_of_collages_is_written_anew_where_it_is_not_theirs(place, entry):
    place.works("ranking", **CROPS)
    path = place / "selected" / "manifest.json"
    content = json.loads(path.read_text())
    expected = json.loads(path.read_text())[entry]
    content[entry].popitem()
    path.write_text(json.dumps(content))
    assert "complete" not in place.works("ranking", **CROPS)
    assert json.loads(path.read_text())[entry] == expected
    assert "complete" in place.works("ranking", **CROPS)
