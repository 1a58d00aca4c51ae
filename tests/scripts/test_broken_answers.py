"""Where the project cannot answer what a script asks, the script says so in a line, and begins nothing."""

import pytest

from result_files import write_manifest
from script_stubs import PYTHON, Stubs, command


def broken(folder, asked, code):
    """Stubs whose Python fails at `recover.methods ASKED`, as where a package is missing or memory runs out."""
    stubs = Stubs(folder)
    said = "echo Traceback >&2; echo \"ModuleNotFoundError: No module named 'PIL'\" >&2"
    first = f'[ "$2 $3" = "recover.methods {asked}" ] && {{ {said}; exit {code}; }}\n'
    command(stubs.python, PYTHON.replace("#!/bin/sh\n", f"#!/bin/sh\n{first}"))
    write_manifest(folder / "made", arguments={"method": "cda"}, method="cda")
    return stubs


@pytest.mark.parametrize("code", [1, 137])
@pytest.mark.parametrize(
    "name, asked, given",
    [
        ("distill", "--needs", {}),
        ("compare", "--needs", dict(METHODS="cda")),
        ("compare", "", {}),
        ("distill", "--made", dict(DELT_STAGES="validate")),
    ],
)
def test_a_module_that_fails_is_named(tmp_path, name, asked, given, code):
    paths = dict(SYN_PATH=tmp_path / "made", RANKER_PATH=tmp_path / "teacher.pth") if name == "distill" else {}
    calls, process = broken(tmp_path, asked, code)(name, **paths, **given)
    assert process.returncode == 2 and not calls
    [line] = process.stderr.splitlines()
    assert line.startswith(f"{name}.sh: python -m recover.methods") and f"exit code {code}: ModuleNotFound" in line


def test_a_failure_makes_no_set_another_method_s(tmp_path):
    line = dict(DELT_STAGES="validate", SYN_PATH=tmp_path / "made", RANKER_PATH=tmp_path / "teacher.pth")
    calls, process = broken(tmp_path, "delt", 1)("distill", **line, DELT_METHOD="delt")
    assert process.returncode == 2 and not calls and "was made by cda, not by delt" in process.stderr
