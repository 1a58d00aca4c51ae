"""Every way into the program ends with one line of error, whatever the message holds."""

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from utils.run import boundary
from utils.run.errors import UserError

DOORS = {
    "a stage": ("utils.from_tensors", ["odd\nname.pt", "{out}"], {}),
    "the launcher": ("utils.run.launch", ["--standalone", "-m", "recover"], {"DELT_GRACE": "odd\nname"}),
    "data": ("utils.data.prepare", ["cifar10", "--source", "odd\nname", "--output", "{out}"], {}),
    "cells": ("utils.run.cells", ["{out}"], {}),
    "methods": ("recover.methods", ["--needs", "odd\nname"], {}),
    "criteria": ("ranking.criteria", ["odd\nname"], {}),
    "protocols": ("validate.protocols", ["odd\nname"], {}),
    "data sets": ("utils.data.datasets", ["odd\nname"], {}),
}


def ended(tmp_path, module, words, variables=None, given=""):
    line = [sys.executable, "-m", module, *(word.format(out=tmp_path / "out") for word in words)]
    settings = {**os.environ, **(variables or {})}
    return subprocess.run(line, cwd=ROOT, env=settings, input=given, text=True, capture_output=True)


@pytest.mark.parametrize("door", DOORS)
def test_a_message_of_several_lines_ends_as_one(tmp_path, door):
    done = ended(tmp_path, *DOORS[door], given="odd\nname\0file\0other\0" + "1\0sh\0")  # no cell is called other
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert "odd name" in done.stderr.replace("\\n", " ")


@pytest.mark.parametrize("module", ["utils.data.prepare", "utils.run.cells", "recover.methods", "ranking.criteria"])
def test_an_unknown_flag_is_one_line_that_says_where_the_known_ones_stand(tmp_path, module):
    done = ended(tmp_path, module, ["--nosuch"])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and f"(see python -m {module} --help)" in done.stderr


@pytest.mark.parametrize(
    "error, line",
    [
        (UserError("this\nis wrong"), "this is wrong"),
        (UserError(), "UserError"),
        (OSError(28, "No space left on device", "/a/b"), "/a/b: No space left on device"),
        (OSError(28, "No space left on device"), "writing: No space left on device"),
        (OSError("the server\nsays no"), "the server says no"),
    ],
)
@pytest.mark.parametrize("debug", ["", "1"])
def test_an_error_is_one_line_after_its_traceback_where_that_was_asked_for(capsys, monkeypatch, error, line, debug):
    def fails():
        raise error

    monkeypatch.setenv("DELT_DEBUG", debug)
    assert boundary.run(fails) == 2
    before, _, last = capsys.readouterr().err.rpartition("error: ")
    assert last == f"{line}\n" and ("in fails" in before) == bool(debug) and (before == "") != bool(debug)


def test_the_exit_code_is_the_command_s_own():
    assert [boundary.run(lambda: code) for code in (None, 0, 1, 143)] == [0, 0, 1, 143]
