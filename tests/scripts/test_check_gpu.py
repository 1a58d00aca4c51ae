"""check_gpu.sh with a stand-in for Python, and so for the GPU: what is run, in which time, and how it ends."""

import os
import re
import shutil
import subprocess

import pytest

from script_stubs import ROOT, SCRIPTS, command

PYTHON = """#!/bin/sh
case "$*" in
    "-c "*get_device_name*) echo "$CARD"; exit 0;;
    "-c "*xdist*) exit "${XDIST:-0}";;
    "-c "*available_cpus*) echo 6; exit 0;;
    "-c "*) exit "${PACKAGES:-0}";;
esac
echo "$*" >> "$RECORD"
case "$*" in
    *"-m pytest"*) [ -z "$SLOW" ] || exec sleep 20; echo "dots"; echo "31 passed in 9.87s"; exit "${TESTED:-0}";;
    *"-m benchmarks.gpu"*)
        while [ "$1" != --output ]; do shift; done
        echo "| the table |" > "$2"
        exit "${MEASURED:-0}";;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Runs check_gpu.sh; gives the process and what its Python was asked to run."""
    python, record = command(tmp_path / "python", PYTHON), tmp_path / "record"

    def run(script=SCRIPTS / "check_gpu.sh", **variables):
        record.write_text("")
        given = dict(PYTHON_BIN=python, RECORD=record, RUN_DIR=tmp_path / "run", CARD="Stub 9000", LIMIT=60)
        env = {"PATH": os.environ["PATH"], **given, **variables}
        done = subprocess.run(
            ["bash", script],
            cwd="/",
            text=True,
            capture_output=True,
            env={name: str(value) for name, value in env.items() if value is not None},
        )
        return done, record.read_text().splitlines()

    return run


def test_tests_then_benchmarks_then_the_table(check, tmp_path):
    done, (tests, speed) = check()
    assert done.returncode == 0, done.stderr
    assert "check_gpu: Stub 9000; at most 60 s" in done.stdout and "| the table |" in done.stdout
    assert re.fullmatch(r"-m pytest -q -m cuda -n 6 tests/cuda tests/utils/fit", tests)
    words = speed.split()
    assert words[:4] == ["-m", "benchmarks.gpu", "--device", "cuda"] and "--rows" not in words
    assert 30 <= int(words[words.index("--seconds") + 1]) <= 50, "what the tests have left"
    assert f"tests: 31 passed in 9.87s; table: {tmp_path}/run/gpu.md" in done.stdout.splitlines()[-1]
    assert (tmp_path / "run" / "tests.log").read_text().startswith("dots\n")


def test_all_tests_of_a_gpu_are_in_those_folders():
    marked = [
        path.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"pytest\.mark\.cuda|needs_gpu", path.read_text())
    ]
    assert marked and all(path.startswith(("cuda/", "utils/fit/")) for path in marked if "test_check_gpu" not in path)


def test_benchmarks_are_run_after_tests_that_fail(check):
    done, asked = check(TESTED=1, XDIST=1)
    assert done.returncode == 1 and len(asked) == 2 and "| the table |" in done.stdout
    assert " -n " not in asked[0]


def test_benchmarks_that_fail_are_said(check):
    done, _ = check(MEASURED=3)
    assert done.returncode == 1 and "table: the benchmarks ended with exit code 3" in done.stdout.splitlines()[-1]


def test_tests_that_take_too_long_leave_the_benchmarks_their_time(check):
    done, asked = check(SLOW=1, TEST_LIMIT=1)
    assert done.returncode == 1 and len(asked) == 2
    assert "tests: not done in 1 s; table: " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("parts, asked", [("tests", ["pytest"]), ("speed", ["benchmarks.gpu"])])
def test_one_part(check, parts, asked):
    done, lines = check(PARTS=parts, ROWS="whole conv3")
    assert done.returncode == 0 and [line.split()[1] for line in lines] == asked
    assert parts == "tests" or lines[0].endswith("--rows whole conv3")


@pytest.mark.parametrize(
    "variables, said",
    [
        (dict(CARD=""), "PyTorch finds no GPU"),
        (dict(PARTS="all"), "PARTS: 'all' is none of: tests speed"),
        (dict(PACKAGES=1), "lacks one of: torch, torchvision, timm"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_run(check, variables, said):
    done, asked = check(**variables)
    assert done.returncode == 2 and said in done.stderr and asked == []


def test_packages_that_are_there_need_no_setup(check, tmp_path):
    """setup.sh, which asks the network, is run where the packages are missing alone."""
    (tmp_path / "scripts").mkdir()
    for name in "check_gpu.sh", "common.sh":
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    command(tmp_path / "scripts" / "setup.sh", 'echo "setup $*" >> "$RECORD"\n')
    command(tmp_path / ".venv" / "bin" / "python", PYTHON)
    line = dict(script=tmp_path / "scripts" / "check_gpu.sh", PYTHON_BIN=None)
    assert check(**line)[1][0].startswith("-m pytest")
    done, asked = check(**line, PACKAGES=1)
    assert done.returncode == 0 and asked[0] == "setup requirements-test.txt" and len(asked) == 3
