"""Classes with fewer images than --ipc: an error that names the way on, and what follows from each way."""

import json

import pytest

from conftest import images
from refusals import refused

IPC = 4


@pytest.fixture
def short(place):
    """Class moth has two images to select from."""
    for path in sorted((place / "train/moth").iterdir())[2:]:
        path.unlink()
    return place


def selected(place, name="moth"):
    return sorted(path.name for path in (place / "selected" / name).iterdir())


@pytest.mark.parametrize("criterion", ["medium", "random", "herding"])
def test_the_error_names_the_flag_that_goes_on(short, criterion):
    refused(short, "ranking", "'moth' has 2 images", "--ipc 2", "--short-classes repeat or keep", criterion=criterion)


def test_so_does_a_ranking_file_with_too_few_rows(place):
    place.works("ranking", output_dir=None)
    lines = (place / "ranking.csv").read_text().splitlines()
    moths = [line for line in lines if ",moth," in line]
    (place / "ranking.csv").write_text("\n".join([line for line in lines if line not in moths[2:]]) + "\n")
    refused(place, "ranking", "moth (2)", "--short-classes repeat or keep")
    place.works("ranking", short_classes="keep")
    assert len(selected(place)) == 2


@pytest.mark.parametrize("criterion", ["medium", "top", "random", "herding", "k-center"])
def test_repeated_images_go_through_all_stages(short, criterion):
    out = short.works("ranking", criterion=criterion, short_classes="repeat")
    assert "fewer than 4 images in class moth (2)" in out
    names = selected(short)
    assert [name[:4] for name in names] == ["000_", "001_", "002_", "003_"]
    assert names[0][4:] == names[2][4:] != names[1][4:] == names[3][4:]
    assert len({name[4:] for name in selected(short, "ant")}) == IPC
    if criterion == "medium":
        short.works("recover", init_dir=short / "selected")
        assert len(images(short.syn)) == 3 * IPC
        short.works("validate", syn_dir=short.syn)


@pytest.mark.parametrize("criterion", ["medium", "random", "herding"])
def test_kept_classes_are_as_they_are(short, criterion):
    short.works("ranking", criterion=criterion, short_classes="keep")
    assert len(selected(short)) == 2 and len(selected(short, "ant")) == len(selected(short, "zebra")) == IPC
    assert "complete" in short.works("ranking", criterion=criterion, short_classes="keep")


def test_a_kept_selection_is_validated_under_its_ipc_and_not_recovered(short):
    short.works("ranking", short_classes="keep")
    short.works("validate", syn_dir=short / "selected")
    [result] = (short / "measured/results").glob("*.json")
    assert json.loads(result.read_text())["ipc"] == IPC
    refused(short, "recover", "--short-classes keep", "--short-classes repeat", "--ipc 2", init_dir=short / "selected")
    refused(short, "recover", "moth", "--short-classes repeat", "--ipc 2", init_dir=short / "selected", ipc=IPC)
    short.works("recover", init_dir=short / "selected", ipc=2)
    assert len(images(short.syn)) == 3 * 2


def test_nothing_changes_where_no_class_is_short(place):
    place.works("ranking")
    names = selected(place)
    for way in ("repeat", "keep"):
        place.works("ranking", short_classes=way, output_dir=place / way)
        assert images(place / way) == images(place / "selected")
    assert len(names) == IPC
