"""Packages that only some commands need."""

import subprocess
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


def test_without_the_library_datasets_one_line_says_how_to_get_it(place):
    code = "import sys; sys.modules['datasets'] = None; sys.argv[1:] = sys.argv[1:]\n"
    code += "from utils import from_datasets; from utils.run import entry; entry.run(from_datasets.main)"
    line = [sys.executable, "-c", code, place.train, place / "out"]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and "pip install datasets" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (place / "out").exists()
