"""What manifests say: of whatever a file holds, the digests of the images that are digests."""

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from utils.data.manifest import Manifest, of_own_images, seconds
from utils.run.errors import UserError

DIGESTS = [hashlib.sha256(text.encode()).hexdigest() for text in "ab"]


def written(folder, content):
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_a_manifest_says_nothing(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        found = Manifest.of(folder)
        assert found.content == found.settings == found.arguments == found.images == found.digests == {}
        assert found.method is found.dataset is found.criterion is found.digest is None
        assert not found.is_finished and not found.is_recovered


def test_what_was_written_is_read(tmp_path):
    content = {"method": "delt iterations=200", "settings": {"iterations": 200}, "finished": True}
    found = Manifest.of(written(tmp_path, content))
    assert found.content == content and found.settings == content["settings"] and found.is_finished
    assert found.digests == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b'"text"', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "manifest.json"))):
        Manifest.of(tmp_path)
    assert of_own_images(tmp_path).content == {}, "a file of this name that is none of ours"


def test_digests_of_a_selection(tmp_path):
    images = {"ant/000_x.png": DIGESTS[0], "moth/000_y.png": DIGESTS[1]}
    content = {"settings": {"criterion": "medium", "images": {"ant": ["ant/x.png"]}}, "sha256": images}
    assert Manifest.of(written(tmp_path, content)).digests == images


def test_digests_of_a_recovered_set(tmp_path):
    images = {path: {"round": 0, "sha256": digest} for path, digest in zip(("ant/000_x.png", "moth/0.jpg"), DIGESTS)}
    assert Manifest.of(written(tmp_path, {"images": images})).digests == dict(zip(images, DIGESTS))


def test_what_is_no_digest_is_left_out(tmp_path):
    images = {
        "a": DIGESTS[0],
        "b": DIGESTS[0][:-1],
        "c": DIGESTS[0].upper() + "\n",
        "d": 3,
        "e": None,
        "f": [DIGESTS[0]],
    }
    entries = {f"{name}2": {"sha256": value} for name, value in images.items()} | {"g": DIGESTS[1], "h": {}, "i": [3]}
    found = Manifest.of(written(tmp_path, {"sha256": images, "images": entries})).digests
    assert found == {"a": DIGESTS[0], "a2": DIGESTS[0]}


@pytest.mark.parametrize("value, expected", [(3, 3.0), (2.5, 2.5), (0, 0.0)])
def test_seconds_are_read(value, expected):
    assert seconds({"seconds": value}) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(DIGESTS) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sha256", "round", "a/b.png"]), inner),
    max_leaves=8,
)


@few
@given(st.dictionaries(st.sampled_from(["sha256", "images", "settings"]), VALUES))
def test_any_content_gives_digests_or_none(tmp_path_factory, content):
    folder = written(tmp_path_factory.getbasetemp(), content)
    for path, digest in Manifest.of(folder).digests.items():
        assert isinstance(path, str) and digest in DIGESTS


@few
@given(st.dictionaries(st.sampled_from(["method", "dataset", "seconds", "settings", "arguments"]), VALUES))
def test_any_content_gives_facts_or_none(tmp_path_factory, content):
    folder = written(tmp_path_factory.getbasetemp(), content)
    found = Manifest.of(folder)
    for value, kind in ((found.method, str), (found.dataset, str), (found.kept_ipc, int)):
        assert value is None or (type(value) is kind and value)
    assert 0 <= found.seconds < float("inf")


@pytest.mark.parametrize("value", ["", "  ", 3, True, ["delt"], {"a": 1}, None])
def test_what_is_no_method_is_left_out(tmp_path, value):
    assert Manifest.of(written(tmp_path, {"method": value})).method is None


def test_a_method_is_one_line(tmp_path):
    assert Manifest.of(written(tmp_path, {"method": " delt\n  jitter=1 "})).method == "delt jitter=1"


@pytest.mark.parametrize("value", [True, "3", -1, [1], None, float("inf"), float("nan"), 10**400])
def test_what_are_no_seconds_is_0(tmp_path, value):
    assert Manifest.of(written(tmp_path, {"seconds": value})).seconds == 0


@pytest.mark.parametrize("value", [True, "3", -1, 0, 2.5, [1], None])
def test_what_is_no_number_of_images_is_none(tmp_path, value):
    assert Manifest.of(written(tmp_path, {"settings": {"short_classes": "keep", "ipc": value}})).kept_ipc is None


def test_half_a_character_is_refused(tmp_path):
    """JSON can hold it, and no file or terminal that it would be written to."""
    (tmp_path / "manifest.json").write_text('{"method": "\\ud800"}')
    with pytest.raises(UserError, match="manifest.json"):
        Manifest.of(tmp_path)
    (tmp_path / "manifest.json").write_text('{"method": "\\ud83d\\ude00"}')
    assert Manifest.of(tmp_path).method == "\U0001f600"


@pytest.mark.parametrize("stage, name", [("ranking", "selected"), ("recover", "syn")])
def test_stages_write_what_is_read(place, stage, name):
    place.works(stage)
    images = [path for path in (place / name).glob("*/*") if path.is_file()]
    assert len(images) == 3 * 4
    expected = {
        path.relative_to(place / name).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in images
    }
    assert Manifest.of(place / name).digests == expected


def collages(counts):
    return {"tiles": {f"a/{number}.png": [{"path": "x"}] * count for number, count in enumerate(counts)}}


@pytest.mark.parametrize(
    "content, side",
    [
        ({}, 1),
        (collages([4, 4]), 2),
        (collages([9]), 3),
        (collages([1, 1]), 1),  # crops, one an image
        (collages([4, 9]), 1),
        (collages([0]), 1),
        ({"tiles": {"a/0.png": "x"}}, 1),
        ({"tiles": []}, 1),
        ({"tile_side": 2}, 2),
        ({"tile_side": 2, **collages([9])}, 2),
        *(({"tile_side": value}, 1) for value in (0, -1, True, "2", 1.5, None)),
    ],
)
def test_tiles_along_a_side(tmp_path, content, side):
    assert Manifest.of(written(tmp_path, content)).tile_side == side


@pytest.mark.parametrize(
    "content, size",
    [
        ({"settings": {"input_size": 32}}, 32),  # a synthetic set
        ({"settings": {"criterion": "medium", "size": 64}, "input_size": 32}, 64),  # collages, of a size of their own
        ({"settings": {"criterion": "medium"}, "input_size": 40}, 40),
        ({"settings": {"criterion": "random"}, "input_size": None}, None),
        *(({"settings": {"input_size": value}}, None) for value in (7, 10**9, "32", 32.0, True, None, [32])),
        ({"settings": [32], "input_size": "32"}, None),
    ],
)
def test_the_input_size_of_the_network_that_made_or_chose_the_images(tmp_path, content, size):
    images = {"images": {"ant/0.png": {"sha256": DIGESTS[0]}}}
    assert Manifest.of(written(tmp_path, {**content, **images})).input_size == size
    assert Manifest.of(written(tmp_path, content)).input_size is None, "it may be of something else"


def test_what_is_no_manifest_says_no_input_size(tmp_path):
    assert of_own_images(tmp_path).input_size is None
    (tmp_path / "manifest.json").write_text("[")
    assert of_own_images(tmp_path).input_size is None


@pytest.mark.parametrize(
    "content, count",
    [
        ({"settings": {"ipc": 2}, "images": {"a/0.png": {}, "a/1.png": {}}}, 2),
        ({"settings": {"images": {"a": ["a/x.png", "a/y.png"], "b": ["b/z.png"]}}}, 3),
        ({"settings": {"images": {"a": 3}}, "images": 3}, 0),
        ({}, 0),
    ],
)
def test_images_are_counted_by_any_manifest(content, count):
    assert Manifest(content).image_count == count
