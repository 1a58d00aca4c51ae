"""Outputs: checked before any work, claimed by one run, and written by one process at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
from threading import Timer

import pytest

from conftest import ROOT, snapshot
from helpers import tree
from utils.run.errors import UserError
from utils.run.files import machine
from utils.run.outputs import check_folder, check_output, claim, locked

RECORD = "manifest.json"
SETTINGS = {"lr": 0.25, "seed": 0}


# --- checks -------------------------------------------------------------------------------------------------------


def test_an_output_that_can_be_created_is_fine(tmp_path):
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "new", tmp_path / "a" / "b" / "c.csv", tmp_path / "images2"):
        check_output(path, tmp_path / "images")
    assert tree(tmp_path) == ["images"], "and nothing is created yet"


@pytest.mark.parametrize("path", ["images", "images/inside", "images/../images", "."])
def test_an_output_may_not_mix_with_an_input(tmp_path, path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="would mix with the input .*images"):
        check_output(tmp_path / path, tmp_path / "images")


def test_a_link_to_an_input_is_that_input(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    with pytest.raises(UserError, match="would mix"):
        check_output(tmp_path / "link" / "new", tmp_path / "images")


def test_an_output_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, not a folder"):
        check_output(tmp_path / "file" / "new")
    with pytest.raises(UserError, match="file: is a file; an output folder is needed"):
        check_folder(tmp_path / "file", RECORD)


def test_what_is_in_an_output_folder(tmp_path):
    assert check_folder(tmp_path / "new", RECORD) == set()
    folder = tmp_path / "run"
    claim(folder, RECORD, SETTINGS, False)
    (folder / "a").mkdir()
    (folder / f".manifest.{machine()}.4711.partial.json").touch()
    assert check_folder(folder, RECORD) == {RECORD, "a"}
    with pytest.raises(UserError, match="not empty and holds no run of this stage"):
        check_folder(folder, "index.json")


# --- claims -------------------------------------------------------------------------------------------------------


def test_a_claim_says_whose_the_folder_is(tmp_path):
    record = claim(tmp_path / "new" / "run", RECORD, SETTINGS, False)
    assert record["settings"] == SETTINGS and not record["finished"]
    assert json.loads((tmp_path / "new" / "run" / RECORD).read_text()) == record


def test_the_same_run_finds_its_record_and_its_files(tmp_path):
    claim(tmp_path / "run", RECORD, SETTINGS, False)
    (tmp_path / "run" / "x.png").write_text("an image")
    (tmp_path / "run" / RECORD).write_text(json.dumps({"settings": SETTINGS, "finished": True, "seconds": 7}))
    for overwrite in (False, True):
        assert claim(tmp_path / "run", RECORD, SETTINGS, overwrite)["seconds"] == 7
        assert tree(tmp_path / "run") == [RECORD, "x.png"]


def test_another_run_is_refused_unless_told_to_overwrite(tmp_path):
    folder = tmp_path / "run"
    claim(folder, RECORD, SETTINGS, False)
    (folder / "x.png").write_text("an image")
    before = snapshot(folder)
    with pytest.raises(UserError, match=r"lr: 0.25 -> 0.1.*--overwrite") as error:
        claim(folder, RECORD, {**SETTINGS, "lr": 0.1}, False)
    assert str(folder) in str(error.value) and "seed" not in str(error.value) and snapshot(folder) == before
    claim(folder, RECORD, {**SETTINGS, "lr": 0.1}, True)
    assert tree(folder) == [RECORD]
    assert json.loads((folder / RECORD).read_text())["settings"] == {**SETTINGS, "lr": 0.1}


def test_a_run_without_any_result_is_in_nobody_s_way(tmp_path):
    claim(tmp_path / "run", RECORD, SETTINGS, False)
    assert claim(tmp_path / "run", RECORD, {"lr": 0.1}, False)["settings"] == {"lr": 0.1}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ['{"settings": 3}', "[]", "{}", "null", "no JSON"])
def test_a_folder_with_another_record_is_left_alone(tmp_path, overwrite, content):
    (tmp_path / RECORD).write_text(content)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=RECORD):
        claim(tmp_path, RECORD, SETTINGS, overwrite)
    assert tree(tmp_path) == [RECORD, "mine.txt"] and (tmp_path / RECORD).read_text() == content


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_nobody_claimed_is_never_emptied(tmp_path, overwrite):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        claim(tmp_path, RECORD, SETTINGS, overwrite)
    assert tree(tmp_path) == ["mine.txt"]


def test_a_run_killed_while_it_emptied_its_folder_can_start_again(tmp_path, monkeypatch):
    """The record goes last, and says meanwhile that what is there is not whole."""
    folder, other = tmp_path / "run", {**SETTINGS, "lr": 0.1}
    claim(folder, RECORD, SETTINGS, False)
    (folder / RECORD).write_text(json.dumps({"settings": SETTINGS, "finished": True}))
    for name in "abcdef":
        (folder / name).mkdir()
    removed, rmtree = [], shutil.rmtree

    def killed(path):
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        claim(folder, RECORD, other, True)
    monkeypatch.undo()
    assert len(list(folder.iterdir())) == 4
    assert claim(folder, RECORD, SETTINGS, False)["finished"] is False
    assert claim(folder, RECORD, other, True)["settings"] == other and tree(folder) == [RECORD]


def test_a_record_names_nothing_outside_of_its_folder(tmp_path):
    """It may have come from others with the folder."""
    folder = tmp_path / "run"
    claim(folder, RECORD, SETTINGS, False, files=["a/x.png"])
    for name in ("other/mine.txt", "mine.txt", "run/a/x.png", "run/.git/HEAD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    (folder / "link").symlink_to(tmp_path / "other")
    names = ["a/x.png", "../mine.txt", str(tmp_path / "mine.txt"), "link/mine.txt", "..", ".git", "none/at/all"]
    (folder / RECORD).write_text(json.dumps({"settings": SETTINGS, "files": dict.fromkeys(names)}))
    claim(folder, RECORD, {"lr": 0.1}, True, files=["b"])
    assert [name for name in tree(tmp_path) if "." in name] == [
        *("mine.txt", "other/mine.txt", "run/.git", "run/.git/HEAD", f"run/{RECORD}")
    ]
    assert not (folder / "a").exists() and json.loads((folder / RECORD).read_text())["files"] == {"b": None}


def test_a_run_killed_while_it_claimed_its_folder_can_start_again(tmp_path):
    # What SIGKILL leaves between the writing of the manifest and its renaming.
    (tmp_path / f".manifest.{machine()}.4711.partial.json").write_text('{"sett')
    assert claim(tmp_path, RECORD, SETTINGS, False)["settings"] == SETTINGS


def test_an_input_is_never_claimed(tmp_path):
    claim(tmp_path / "run", RECORD, SETTINGS, False)
    with pytest.raises(UserError, match="would mix with the input"):
        claim(tmp_path / "run", RECORD, SETTINGS, True, tmp_path / "run" / "images")


# --- one process at a time ----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from utils.run.outputs import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of an output until a line comes to it, or it is killed."""
    started = []

    def start(output, **env):
        words = [sys.executable, "-c", HOLD, str(output)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, cwd=ROOT, env={**os.environ, **env}, **pipes))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, holder):
    process = holder(tmp_path / "new" / "out")
    with pytest.raises(UserError) as error, locked(tmp_path / "new" / "out"):
        pass
    message = str(error.value)
    assert f"process {process.pid}" in message and os.uname().nodename in message and "\n" not in message
    assert str(tmp_path / "new" / "out") in message
    with locked(tmp_path / "new" / "other"):
        pass
    process.communicate("end\n")
    assert process.returncode == 0 and tree(tmp_path) == ["new"], "a clean end leaves no lock"
    with locked(tmp_path / "new" / "out"):
        pass


def test_a_killed_process_s_lock_is_free(tmp_path, holder):
    process = holder(tmp_path / "out")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with locked(tmp_path / "out"):
        assert tree(tmp_path) == [".out.lock"]
    assert tree(tmp_path) == []


def test_an_error_within_leaves_no_lock(tmp_path):
    with pytest.raises(ValueError), locked(tmp_path / "out"):
        raise ValueError
    assert tree(tmp_path) == []


def test_the_ranks_of_a_run_write_into_one_output(tmp_path, holder, monkeypatch):
    holder(tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"):
        pass
    process = holder(tmp_path / "out", RANK="2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(UserError, match=f"process {process.pid}"), locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize(
    "stage, output",
    [
        ("squeeze", "squeezed.pth"),
        ("ranking", "selected"),
        ("ranking", "ranking.csv"),
        ("recover", "syn"),
    ],
)
def test_a_stage_is_refused_while_another_process_writes_its_output(place, holder, stage, output):
    process = holder(place / output)
    before = tree(place.root)
    outcome = place.run(stage, batch_size="auto")
    assert tree(place.root) == before, "not even a note of the batch size is written"
    assert outcome.code == 2 and f"process {process.pid}" in outcome.err and str(place / output) in outcome.err
    assert len(outcome.err.splitlines()) == 1 and not (place / output).exists()
    process.kill()
    process.wait()
    place.works(stage)
    assert not list(place.root.rglob(".*.lock")), "and no lock is left"


def test_two_students_of_one_set_are_not_trained_by_two_processes(place, holder):
    place.works("validate", epochs=1)
    [result] = (place / "measured" / "results").glob("*.json")
    result.unlink()
    process = holder(result)
    outcome = place.run("validate", epochs=1)
    assert outcome.code == 2 and f"process {process.pid}" in outcome.err and not result.exists()
    place.works("validate", epochs=2)  # another result, in the same folder
    process.kill()
    process.wait()
    place.works("validate", epochs=1)
    assert not list(place.root.rglob(".*.lock")), "and no lock is left"


def test_a_row_waits_while_another_process_adds_one(tmp_path, holder):
    process = holder(tmp_path / "results.csv")
    Timer(0.3, process.kill).start()
    with locked(tmp_path / "results.csv", wait=60):
        assert process.wait(10) == -signal.SIGKILL
    with pytest.raises(UserError), locked(tmp_path / "x"), locked(tmp_path / "x", wait=0.1):
        pass


@pytest.mark.parametrize("module", ["utils.from_tensors", "utils.data.prepare"])
def test_what_makes_a_folder_of_images_is_refused_too(tmp_path, holder, module):
    process = holder(tmp_path / "out")
    words = [tmp_path / "set.pt", tmp_path / "out"]
    if module == "utils.data.prepare":
        words = ["cifar10", "--source", tmp_path, "--output", tmp_path / "out"]
    line = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and f"process {process.pid}" in done.stderr and tree(tmp_path) == [".out.lock"]
