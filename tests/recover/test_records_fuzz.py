"""Manifests and records of a synthetic set that hold anything: used, done again, or refused in one line."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import images, snapshot
from fuzzing import altered, damaged, fuzzed, refused_or
from recover.synthetic_set import SyntheticSet
from recover.units import Unit

LINE = {"batch_size": 4, "iterations": 2, "round_iterations": 1}  # three units


@pytest.fixture(scope="module")
def finished(stock, tmp_path_factory):
    """A place with a finished synthesis."""
    place = stock.copied(tmp_path_factory.mktemp("finished"))
    place.works("recover", **LINE)
    return place


@pytest.mark.slow
def test_a_manifest_of_anything(finished):
    """The stage resumes, or refuses; it writes nowhere but into its folder."""
    path = finished.syn / "manifest.json"
    kept, whole = path.read_bytes(), images(finished.syn)

    def around():
        return {name: state for name, state in snapshot(finished.root).items() if not name.startswith("syn")}

    before = around()
    assert "is complete" in finished.works("recover", **LINE), "the undamaged one"

    @settings(fuzzed, max_examples=40)
    @given(altered(json.loads(kept)))
    def check(content):
        path.write_text(json.dumps(content))
        outcome = finished.run("recover", **LINE)
        assert outcome.code in (0, 2) and "Traceback" not in outcome.err
        assert around() == before
        if outcome.code == 0:
            assert images(finished.syn) == whole
        path.write_bytes(kept)
        assert "is complete" in finished.works("recover", **LINE)

    check()


@pytest.fixture
def one_unit(finished):
    """A set of one unit with a record that is whole, the record's path, and what it says."""
    kept = (finished.syn / "manifest.json").read_bytes()
    manifest = json.loads(kept)
    unfinished = {"settings": manifest["settings"], "finished": False}  # else it would vouch for the unit
    (finished.syn / "manifest.json").write_text(json.dumps(unfinished))
    names = {(0, position): name for position, name in enumerate(sorted(manifest["images"])[:4])}
    made = SyntheticSet(finished.syn, manifest["settings"], [Unit(0, tuple(names))], names)
    content = {"images": {name: manifest["images"][name] for name in names.values()}, "seconds": 1.0}
    made.work.save(0, content)
    assert made.missing() == [] and made.work.record(0) == content
    [path] = (finished.syn / ".units").glob("*.json")
    yield made, path
    shutil.rmtree(path.parent)
    (finished.syn / "manifest.json").write_bytes(kept)


@settings(fuzzed, max_examples=100)
@given(st.data())
def test_unit_records_of_anything(one_unit, data):
    made, path = one_unit
    whole = path.read_bytes()
    try:
        entry = json.loads(whole)
        path.write_bytes(
            json.dumps(data.draw(altered(entry))).encode() if data.draw(st.booleans()) else data.draw(damaged(whole))
        )
        done = refused_or(lambda: made.missing() == [])
        assert done is False or json.loads(path.read_bytes()) == entry, "what is changed is not used"
    finally:
        path.write_bytes(whole)


@settings(fuzzed, max_examples=60)
@given(st.data())
def test_a_unit_whose_images_are_damaged_is_done_again(finished, one_unit, data):
    made, _ = one_unit
    image = finished.syn / data.draw(st.sampled_from(sorted(made.names.values())))
    whole = image.read_bytes()
    try:
        image.write_bytes(found := data.draw(damaged(whole)))
        assert (made.missing() == []) == (found == whole)
    finally:
        image.write_bytes(whole)
