"""Stored labels that nobody can vouch for: used as their checksums say, or refused in one line."""

import json
import shutil

import pytest
from hypothesis import given, settings

from fuzzing import altered, damaged, fuzzed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labelled(stock, tmp_path_factory):
    place = stock.copied(tmp_path_factory.mktemp("labelled"))
    place.works("validate", save_labels=place / "labels", epochs=2)
    return place


def accuracy(place, name):
    [path] = (place / name / "results").glob("*.json")
    return [(seed["top1"], seed["curve"]) for seed in json.loads(path.read_text())["seeds"]]


def use(place):
    """Train on the stored labels, without a teacher."""
    shutil.rmtree(place / "out", ignore_errors=True)
    line = {"epochs": 2, "student_arch": "conv3", "output_dir": place / "out"}
    return place.run("validate", load_labels=place / "labels", teacher_path=None, **line)


def test_a_label_index_of_anything(labelled):
    path = labelled / "labels" / "seed0" / "index.json"
    good = path.read_text()
    assert use(labelled).code == 0, "the undamaged one"
    assert accuracy(labelled, "out") == accuracy(labelled, "measured"), "as when they were stored"

    @settings(fuzzed, max_examples=60)
    @given(altered(json.loads(good)))
    def check(content):
        try:
            path.write_text(json.dumps(content))
            outcome = use(labelled)
            assert outcome.code in (0, 2) and "Traceback" not in outcome.err
            if outcome.code == 0:
                [(_, curve)] = accuracy(labelled, "out")
                assert len(curve) == 2, "no student of fewer labels than it should have"
        finally:
            path.write_text(good)

    check()


def test_damaged_label_shards(labelled):
    [path] = (labelled / "labels" / "seed0").glob("*.safetensors")
    good = path.read_bytes()
    assert use(labelled).code == 0, "the undamaged one"

    @settings(fuzzed, max_examples=30)
    @given(damaged(good))
    def check(content):
        try:
            path.write_bytes(content)
            outcome = use(labelled)
            assert outcome.code == (0 if content == good else 2), "a shard is what its checksum says, or not used"
            assert outcome.code == 0 or (str(path) in outcome.err and len(outcome.err.splitlines()) == 1)
        finally:
            path.write_bytes(good)

    check()
