"""Packages that only some commands need."""

import sys

import pytest

from conftest import ROOT
from utils.run.errors import UserError
from utils.run.packages import PACKAGES, is_missing, needed


@pytest.mark.parametrize("name", PACKAGES)
def test_one_that_is_missing_is_asked_for_in_one_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, PACKAGES[name].module, None)
    with pytest.raises(
        UserError, match=f"tables need the package {name}, which is not installed: .*pip install {name}"
    ):
        needed(name, "tables")
    assert is_missing(name)


@pytest.mark.parametrize("name", PACKAGES)
def test_its_file_of_requirements_installs_it(name):
    if PACKAGES[name].file:
        lines = (ROOT / PACKAGES[name].file).read_text().splitlines()
        assert any(line.startswith(f"{name}>=") for line in lines)


def test_without_the_library_datasets_one_line_says_how_to_get_it(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    outcome = place.start("utils.from_datasets", place.train, place / "out")
    assert outcome.code == 2 and "pip install datasets" in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (place / "out").exists()
