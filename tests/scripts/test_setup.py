"""setup.sh, test.sh and .ci/run: the environment, and what is checked in it."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import snapshot
from script_stubs import ROOT, SCRIPTS, command

# Stands for python3, and for .venv's Python once it has "made" .venv. The index holds the versions in $TORCH and
# $TORCHVISION; $HELD is the torch that .venv holds already; pip fails where its arguments have $BROKEN in them, and
# installs until there is a file $UNTIL. A lock is a real Python's business.
PYTHON = (
    f"""#!/bin/sh
case "$*" in *fcntl*) exec {sys.executable} "$@";; esac
"""
    + """
case "$*" in
    "-c "*version_info*print*|"-c "*print*version_info*) echo 3.11; exit 0;;
    "-c "*'"torch"'*) [ -n "$HELD" ] && echo "$HELD"; exit 0;;
    "-c "*|--version) exit 0;;
    "-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; touch .venv/bin/activate; exit 0;;
esac
echo "$*" >> "$RECORD"
case "$*" in *"${BROKEN:-nothing}"*) echo "ERROR: $BROKEN" >&2; exit 1;; esac
case "$*" in "-m pip install "*) while [ -n "$UNTIL" ] && [ ! -e "$UNTIL" ]; do sleep 0.05; done;; esac
case "$*" in
    "-m pip index "*" torch") echo "torch (9)"; echo "Available versions: $TORCH";;
    "-m pip index "*" torchvision") echo "torchvision (9)"; echo "Available versions: $TORCHVISION";;
    "-m pip list "*) printf '%s\\n' numpy==2.4.6 nvidia-nccl==2 cuda-toolkit==13.0 torch==2.14.1+cpu triton==3.8.0;;
esac
"""
)
DEFAULT = {"TORCH": "2.15.0, 2.14.1, 2.13.0", "TORCHVISION": "0.29.1, 0.28.0"}
CPU = {"TORCH": "2.15.0+cpu, 2.14.1+cpu, 2.14.1, 2.13.0+cpu", "TORCHVISION": "0.29.1+cpu, 0.29.1, 0.28.0+cpu"}
PAIR = "torch==2.14.1+cpu torchvision==0.29.1+cpu"


@pytest.fixture
def begin(tmp_path):
    """Starts setup.sh in a copy of its surroundings, with a stub Python that notes in `record` what pip got."""
    (tmp_path / "scripts").mkdir()
    for name in "setup.sh", "common.sh":
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("torch>=2.5\ntorchvision>=0.20\n")
    (tmp_path / "requirements-test.txt").write_text("-r requirements.txt\npytest\n")
    (tmp_path / "requirements.lock").write_text("numpy==2.4.6\ntorch==2.13.0\ntorchvision==0.28.0\n")
    python = command(tmp_path / "bin" / "python3", PYTHON)
    command(tmp_path / "bin" / "nvidia-smi", '#!/bin/sh\n[ -n "$GPU" ]\n')
    record = tmp_path / "record"
    record.write_text("")

    started = []

    def start(*arguments, **variables):
        process = subprocess.Popen(
            ["bash", tmp_path / "scripts" / "setup.sh", *arguments],
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={"PATH": f"{python.parent}:{os.environ['PATH']}", "RECORD": str(record), **variables},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # a test that failed
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def setup(begin, tmp_path):
    """Runs setup.sh to its end; gives the process, with its output, and the lines that pip got."""
    record = tmp_path / "record"

    def run(*arguments, **variables):
        record.write_text("")
        process = begin(*arguments, **variables)
        out, err = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, out, err), record.read_text().splitlines()

    return run


def installs(lines):
    """What pip was asked to install, in order."""
    return [line.split("--quiet ")[1] for line in lines if "pip install" in line]


def told(process):
    """The line about PyTorch's build."""
    [line] = [line for line in process.stdout.splitlines() if "PyTorch's" in line]
    return line


def test_without_a_gpu_the_cpu_build_is_taken(setup):
    done, lines = setup(**CPU)
    assert done.returncode == 0, done.stderr
    assert installs(lines) == [f"{PAIR} -r requirements.txt"], "torch 2.15.0 has no torchvision here"
    assert "CPU build" in told(done) and PAIR in told(done)


@pytest.mark.parametrize("index", [DEFAULT, {**CPU, "TORCHVISION": "0.28.0"}, {**CPU, "TORCHVISION": "0.27.0+cpu"}, {}])
def test_an_index_without_a_cpu_build(setup, index):
    done, lines = setup(**index)
    assert done.returncode == 0 and installs(lines) == ["-r requirements.txt"]
    assert "default build" in told(done) and "no CPU build" in told(done)


def test_with_a_gpu_the_default_build_is_taken(setup):
    done, lines = setup(GPU="yes", **CPU)
    assert done.returncode == 0 and installs(lines) == ["-r requirements.txt"] and len(lines) == 1
    assert "CUDA" in told(done)


def test_the_default_build_can_be_chosen(setup):
    done, lines = setup(TORCH_BUILD="default", **CPU)
    assert done.returncode == 0 and installs(lines) == ["-r requirements.txt"] and "TORCH_BUILD" in told(done)


def test_a_query_that_fails_fails_nothing(setup):
    done, lines = setup(BROKEN="index", **CPU)
    assert done.returncode == 0 and installs(lines) == ["-r requirements.txt"] and "default build" in told(done)
    assert not done.stderr


def test_a_cpu_build_that_does_not_install_is_replaced(setup):
    """The index names a version that the user's constraints exclude."""
    done, lines = setup(BROKEN="torch==", **CPU)
    assert done.returncode == 0 and installs(lines) == [f"{PAIR} -r requirements.txt", "-r requirements.txt"]
    done, _ = setup("requirements-test.txt", BROKEN="install", **CPU)
    assert done.returncode == 2 and "pip could not install requirements-test.txt" in done.stderr


def test_the_torch_that_is_there_is_kept(setup):
    assert setup(**DEFAULT)[0].returncode == 0
    done, lines = setup("requirements-test.txt", HELD="2.14.1", **CPU)
    assert done.returncode == 0 and installs(lines) == ["-r requirements-test.txt"] and len(lines) == 1
    done, lines = setup("--locked", HELD="2.14.1", **CPU)
    assert installs(lines) == ["torch==2.13.0+cpu torchvision==0.28.0+cpu -r requirements.lock"]


def test_locked_installs_the_versions_of_the_lock(setup):
    done, lines = setup("--locked", **DEFAULT)
    assert done.returncode == 0 and installs(lines) == ["-r requirements.lock"]
    done, lines = setup("--locked", **DEFAULT)
    assert done.returncode == 0 and not lines and not done.stdout, "nothing is left to do"


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_one_at_the_same_time_waits_for_the_first(begin, tmp_path, killed):
    """And finds all installed then; a first one that was killed is nothing to wait for."""
    record, done = tmp_path / "record", tmp_path / "done"
    first = begin(UNTIL=str(done), **CPU)
    while "pip install" not in record.read_text():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = begin(**CPU)
    assert "waiting" in second.stdout.readline()
    assert len(installs(record.read_text().splitlines())) == 1 and second.poll() is None
    if killed:
        os.killpg(first.pid, signal.SIGKILL)
    else:
        done.touch()
    (_, _), (out, err) = first.communicate(), second.communicate()
    assert second.returncode == 0, err
    assert first.returncode == (-signal.SIGKILL if killed else 0)
    assert ("installing" in out) == killed and len(installs(record.read_text().splitlines())) == 1 + killed


def test_nothing_is_written_where_all_is_installed(setup, tmp_path):
    assert setup(**CPU)[0].returncode == 0
    (tmp_path / ".venv.lock").unlink()
    before = snapshot(tmp_path)
    done, lines = setup(**CPU)
    assert done.returncode == 0 and not lines and snapshot(tmp_path).keys() == before.keys()


def test_lock_is_written_from_the_environment(setup, tmp_path):
    done, lines = setup("--lock", **DEFAULT)
    assert done.returncode == 0 and installs(lines) == ["-r requirements-test.txt"], done.stderr
    comment, *versions = (tmp_path / "requirements.lock").read_text().splitlines()
    assert "3.11" in comment and [line for line in versions if line[0] != "#"] == ["numpy==2.4.6", "torch==2.14.1"]


def test_the_lock_names_versions_only():
    """It fits the requirements, and installs on another system and from another index."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {name.lower() for name in locked}
    for line in (ROOT / "requirements.txt").read_text().split() + (ROOT / "requirements-test.txt").read_text().split():
        if ">=" in line:
            assert line.split(">=")[0] in names
    assert not any("/" in line or "+" in line for line in lines if not line.startswith("#"))
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in names)


@pytest.mark.slow
def test_environment_is_made_found_and_repaired(setup, tmp_path):
    """A real one: found whole the second time, and repaired when an install was cut off."""
    real = {"PATH": os.environ["PATH"]}
    (tmp_path / "requirements.txt").write_text("# nothing\n")

    old, _ = setup(PYTHON="false", **real)
    assert old.returncode == 2 and "3.10" in old.stderr and len(old.stderr.splitlines()) == 1
    typo, _ = setup("requirements-typo.txt", **real)
    assert typo.returncode == 2 and "requirements-test.txt" in typo.stderr
    first, _ = setup(**real)
    assert first.returncode == 0 and "making .venv" in first.stdout, first.stderr
    assert "PyTorch's" not in first.stdout, "nothing here needs it"
    assert setup(**real)[0].stdout == "", "nothing is installed"

    (tmp_path / "requirements.txt").write_text("# still nothing\n")
    changed, _ = setup(**real)
    assert "installing" in changed.stdout and "making" not in changed.stdout

    [record] = tmp_path.glob(".venv/lib/python*/site-packages/pip-*.dist-info/RECORD")
    record.unlink()
    (tmp_path / ".venv" / ".installed-requirements.txt").unlink()
    repaired, _ = setup(**real)
    assert repaired.returncode == 0 and "making .venv" in repaired.stdout, repaired.stderr
    assert record.is_file()


# --- test.sh and .ci/run ----------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path):
    """Runs test.sh or .ci/run in a repository of stubs; gives the process and what Python was asked."""
    for name in "scripts/test.sh", "scripts/common.sh", ".ci/run":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in "setup", "quickstart":
        command(tmp_path / "scripts" / f"{name}.sh", 'exit "${QUICKSTART:-0}"\n' if name == "quickstart" else "")
    command(tmp_path / "bin" / "chromium", "")
    record = tmp_path / "record"
    says = f"""#!/bin/sh
case "$1" in -c) echo 3; exit;; esac
echo "$*" >> {record}
case "$*" in *"$FAILING"*) exit 1;; *pytest*) echo "3 passed in 1.00s";; *) echo "All checks passed!";; esac
"""
    command(tmp_path / ".venv" / "bin" / "python", says)

    def run(script, *arguments, **variables):
        record.write_text("")
        environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "FAILING": "nothing", **variables}
        done = subprocess.run(
            ["bash", tmp_path / script, *arguments], cwd="/", text=True, capture_output=True, env=environment
        )
        return done, record.read_text().splitlines()

    return run


def test_format_and_style_are_checked_before_the_tests(house):
    done, (form, style, tests) = house("scripts/test.sh", "-k", "recover")
    assert done.returncode == 0 and "ruff format --check" in form and "ruff check" in style
    assert "pytest" in tests and " -n 3 " in tests and tests.endswith(" -k recover") and "not slow" not in tests
    done, lines = house("scripts/test.sh", FAILING="ruff check")
    assert done.returncode == 1 and not any("pytest" in line for line in lines)


def test_fast_leaves_slow_tests_out(house):
    _, (_, _, tests) = house("scripts/test.sh", "--fast", "-x")
    assert tests.endswith(" -m not slow -x")


def test_ci_ends_with_the_closing_line_of_the_tests(house):
    done, _ = house(".ci/run")
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "3 passed in 1.00s"
    done, _ = house(".ci/run", QUICKSTART="3")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "3 passed in 1.00s"
    assert house(".ci/run", FAILING="pytest")[0].returncode == 1


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs the git repository")
def test_git_keeps_line_ends_and_finds_the_code():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True)

    lines = git("check-attr", "eol", "scripts/distill.sh", "scripts/slurm/one_node.sh", ".ci/run").stdout.splitlines()
    assert len(lines) == 3 and all(line.endswith("eol: lf") for line in lines)
    assert git("check-ignore", "utils/data/new.py", "tests/utils/data/test_new.py").returncode == 1
    made = "data/cifar10", "runs/quickstart", ".ruff_cache/x", ".venv.lock"
    assert git("check-ignore", *made).stdout.split() == [*made]
