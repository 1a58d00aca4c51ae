"""What a shell or a cluster has exported, or what is mistyped, does not lead the scripts elsewhere."""

import os
import shutil
import subprocess

import pytest

from script_stubs import ROOT, Stubs, command


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


def test_folders_that_cd_looks_in_are_not_the_repository(tmp_path):
    """CDPATH has a folder scripts, and the one that a script is in, too, which cd then prints."""
    others = tmp_path / "others"
    for name in "scripts", ".ci":
        (others / name).mkdir(parents=True)
    here = {"PATH": f"{command(tmp_path / 'bin' / 'chromium', '').parent}:{os.environ['PATH']}"}
    shutil.copytree(ROOT / ".ci", tmp_path / "here" / ".ci")
    for name in "test", "quickstart":
        command(tmp_path / "here" / "scripts" / f"{name}.sh", "pwd\n")
    for path in f"{others}", f".:{others}":
        for line in ["distill.sh"], ["compare.sh"], ["setup.sh", "nowhere.txt"], ["check_gpu.sh"]:
            process = subprocess.run(
                ["bash", f"scripts/{line[0]}", *line[1:]],
                cwd=ROOT,
                text=True,
                capture_output=True,
                env={**here, "CDPATH": path, "PYTHON_BIN": "false", "PARTS": "none"},
            )
            [said] = process.stderr.splitlines()
            assert process.returncode == 2 and said.startswith(line[0]) and not process.stdout
        process = subprocess.run(
            ["bash", ".ci/run"],
            cwd=tmp_path / "here",
            text=True,
            capture_output=True,
            env={**here, "CDPATH": path},
        )
        assert process.stdout.splitlines()[:2] == [str(tmp_path / "here")] * 2, process.stderr


def test_one_machine_makes_the_page_whatever_its_number_is(distill):
    plain, _ = distill("distill")
    assert "validate.report.summary" in dict(plain)
    for number in dict(NODE_RANK=3), dict(SLURM_NODEID=1), dict(NODE_RANK="node3"):
        calls, process = distill("distill", **number)
        assert process.returncode == 0 and calls == plain and not process.stderr


@pytest.mark.parametrize(
    "name, variables",
    [
        ("distill", dict(DELT_NPROC="gpu")),
        ("distill", dict(DELT_NPROC=0)),
        ("distill", dict(NNODES="two")),
        ("distill", dict(MASTER_ADDR="node7", NNODES="1:")),
        ("distill", dict(NNODES=2, MASTER_ADDR="node7", NODE_RANK="node8")),
        ("distill", dict(IPC="ten")),
        ("distill", dict(IPC=0)),
        ("distill", dict(MOST_ITR="1e3")),
        ("distill", dict(SEEDS="-1")),
        ("distill", dict(VAL_EPOCHS="1.5")),
        ("quickstart", dict(MOST_ITR="few")),
        ("compare", dict(DELT_NPROC="auto")),
        ("compare", dict(IPC="ten")),
        ("compare", dict(SEEDS="x")),
        ("compare", dict(VAL_EPOCHS=0)),
        ("compare", dict(LABELLERS="all")),
        ("check_gpu", dict(LIMIT="9m")),
        ("check_gpu", dict(TEST_LIMIT="x")),
    ],
)
def test_what_is_no_number_is_said_before_any_stage(distill, name, variables):
    calls, process = distill(name, **variables)
    assert process.returncode == 2 and not calls
    [line] = process.stderr.splitlines()
    variable, value = list(variables.items())[-1]
    assert line.startswith(f"{name}.sh: {variable.removeprefix('DELT_')}: '{value}' is no ")


def test_numbers_may_begin_with_zeros(distill):
    calls, process = distill("distill", ITR="090", ROUND_ITR="09", IPC="08")
    assert process.returncode == 0 and not process.stderr and dict(calls)["recover"]["round-iterations"] == "09"
