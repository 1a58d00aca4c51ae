"""Stored results that nobody can vouch for: read, or refused in one line."""

import json
import shutil

from hypothesis import given
from hypothesis import strategies as st

from fuzzing import altered, damaged, fuzzed, refused_or
from validate import results
from validate.results import Result, Run

FACTS = {
    "method": "delt",
    "student": "conv3",
    "protocol": "delt",
    "dataset": "x",
    "ipc": 1,
    "teacher": "conv3",
    "epochs": 1,
    "syn_dir": "syn",
}
RESULT = Result(0, 50.0, 50.0, 90.0, 1.0, [{"epoch": 1, "loss": 0.1, "top1": 50.0}])


def made(tmp_path_factory):
    """A folder with one result, which is read as it was written."""
    root = tmp_path_factory.getbasetemp() / "runs of anything"
    shutil.rmtree(root, ignore_errors=True)
    run = Run(root, {"a": 1}, FACTS)
    run.add(RESULT)
    assert Run(root, {"a": 1}, FACTS).results == {0: RESULT}
    [row] = results.read_rows(root / "results.csv")
    assert row["top1"] == "50.00" and row["method"] == "delt"
    return root, run.path


@fuzzed
@given(st.data())
def test_results_of_anything(tmp_path_factory, data):
    root, path = made(tmp_path_factory)
    path.write_text(json.dumps(data.draw(altered(json.loads(path.read_text())))))
    found = refused_or(lambda: Run(root, {"a": 1}, FACTS).results)
    assert isinstance(found, dict) or path.name in found


@fuzzed
@given(st.booleans(), st.data())
def test_damaged_results(tmp_path_factory, rows, data):
    root, path = made(tmp_path_factory)
    path = root / "results.csv" if rows else path
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = refused_or(lambda: Run(root, {"a": 1}, FACTS).results)
    assert isinstance(found, dict) or path.name in found
