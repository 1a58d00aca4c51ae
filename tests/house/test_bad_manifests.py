"""Manifests that were changed by hand or damaged: what the stages that read them make of it."""

import json

import pytest

from conftest import images
from refusals import refused


def change(folder, **entries):
    path = folder / "manifest.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **entries}))


@pytest.mark.parametrize("seconds", ["abc", -5, True, [1], None, 10**400])
def test_recover_goes_on_whatever_the_seconds_are(place, seconds):
    place.works("recover")
    before = images(place.syn)
    (place.syn / next(iter(before))).unlink()
    change(place.syn, seconds=seconds)
    place.works("recover")
    assert images(place.syn) == before
    assert 0 <= json.loads((place.syn / "manifest.json").read_text())["seconds"] < 1000


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"ant/000_ant0.png": {"sha256": 3}}])
def test_recover_makes_anew_what_the_manifest_does_not_vouch_for(place, entry):
    place.works("recover")
    before = images(place.syn)
    change(place.syn, images=entry)
    place.works("recover")
    assert images(place.syn) == before


@pytest.mark.parametrize("method", [3, ["delt"], {}, "", None])
def test_validate_calls_a_set_by_its_folder_where_its_method_is_none(place, method):
    change(place.init, method=method)
    assert f"validate: {place.init.name}, conv3" in place.works("validate", epochs=1)


@pytest.mark.parametrize("weight", [10**400, 1e31, 0, -1, "1", True, None, [1]])
def test_validate_refuses_weights_that_are_none(place, weight):
    names = list(images(place.init))
    change(place.init, images={name: {"weight": 1.0 if number else weight} for number, name in enumerate(names)})
    refused(place, "validate", place.init, names[0])


@pytest.mark.parametrize("stage", ["recover", "validate"])
def test_half_a_character(place, stage):
    (place.init / "manifest.json").write_text('{"method": "\\ud800", "sha256": {"\\ud800": 3}}')
    refused(place, stage, place.init / "manifest.json")
