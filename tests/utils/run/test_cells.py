"""Cells: each command is run once, in the order that they need each other, by whatever process is free."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from conftest import ROOT
from utils.run import cells, many_files
from utils.run.cells import Cells, read
from utils.run.cpus import job_cpus
from utils.run.errors import UserError


class Place:
    """Cells whose commands note their names in `log`, and leave a file of that name."""

    def __init__(self, root):
        self.root, self.words = root, []

    def cell(self, name, needs="", script="", leaves=None, reads=()):
        script = f'echo {name} >> {self.root}/log; {script or "true"} && mkdir -p "$(dirname {self.root}/{name})"'
        command = ["sh", "-c", f"{script} && touch {self.root / (leaves or name)}", *map(str, reads)]
        self.words += [name, str(self.root / name), needs, str(len(command)), *command]

    @property
    def listed(self):
        return "".join(f"{word}\0" for word in self.words)

    @property
    def log(self):
        path = self.root / "log"
        return path.read_text().split() if path.exists() else []

    def run(self, workers=1, inputs=()):
        (self.root / "log").unlink(missing_ok=True)
        return Cells(self.root / "cells", read(self.listed), workers, 0.05, list(map(str, inputs))).run()

    def start(self, workers=1, before=""):
        """`before`: in a shell, to be followed by the command."""
        line = [sys.executable, "-m", "utils.run.cells", str(self.root / "cells"), "--workers", str(workers)]
        if before:
            line = ["sh", "-c", f'{before} exec "$@"', "sh", *line]
        pipe = subprocess.PIPE
        process = subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        process.stdin.write(self.listed)
        process.stdin.close()
        process.stdin = None
        return process

    def waits_for(self, name, seconds=30):
        until = time.monotonic() + seconds
        while name not in self.log and time.monotonic() < until:
            time.sleep(0.02)
        assert name in self.log


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_is_run_once_after_those_that_it_needs(place, workers):
    place.cell("teacher")
    place.cell("starts/medium", "teacher")
    place.cell("sets/delt", "teacher starts/medium")
    place.cell("page", "?sets/delt")
    assert place.run(workers) == 0 and place.log == ["teacher", "starts/medium", "sets/delt", "page"]
    assert place.run(workers) == 0 and place.log == [], "all are done"


def test_what_has_gone_or_changed_is_done_again_with_what_needs_it(place):
    for name, needs in (("a", ""), ("b", "a"), ("c", "b"), ("other", "")):
        place.cell(name, needs)
    assert place.run() == 0
    (place.root / "b").unlink()
    assert place.run() == 0 and place.log == ["b", "c"]
    place.words[place.words.index("other") + 6] += " && true"
    assert place.run() == 0 and place.log == ["other"]


def test_inputs_that_changed_are_read_again_by_what_names_them(place):
    file, folder, later = (place.root / name for name in ("teacher.pth", "train", "classes.txt"))
    file.write_text("one")
    (folder / "ant").mkdir(parents=True)
    (folder / "ant" / "0.png").write_text("123")
    (folder / "circle").symlink_to(folder)
    place.cell("selection", reads=[folder, file])
    place.cell("set", "selection", reads=[file])
    place.cell("students", "set", reads=[later])
    place.cell("images", reads=[folder])
    everything = ["selection", "set", "students", "images"]

    def ran():
        assert place.run(inputs=[file, folder, later]) == 0
        return place.log

    assert ran() == everything and ran() == []
    os.utime(file, (1, 1))
    os.utime(folder / "ant" / "0.png", (1, 1))
    (folder / ".DS_Store").write_text("seen")
    (folder / "ant" / "Thumbs.db").write_text("seen")
    assert ran() == [], "as a copy on another machine, or one that was looked at"
    file.write_text("two")
    assert ran() == everything[:3] and ran() == []
    (folder / "ant" / "0.png").write_text("1234")
    assert ran() == everything
    (folder / "ant" / "1.png").write_text("")
    assert ran() == everything
    later.write_text("ant")
    assert ran() == ["students"] and ran() == []


def test_many_files_of_an_input_are_looked_at_once_by_several_threads_and_it_is_said(place, monkeypatch, capfd):
    """A file system on a network takes its time for each."""
    folder, stat, asked = place.root / "train", os.stat, []
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.png").write_text("123")

    def slow(path, *args, **options):
        if str(path).endswith(".png"):
            time.sleep(0.01)
            asked.append((str(path), threading.get_ident()))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", slow)
    monkeypatch.setattr(many_files, "ASKED", 5)
    place.cell("selection", reads=[folder])
    assert place.run(inputs=[folder]) == 0
    assert sorted(path for path, _ in asked) == sorted(map(str, folder.iterdir()))
    assert len({thread for _, thread in asked}) > 4
    assert "of 60 files" not in capfd.readouterr().out
    monkeypatch.setattr(cells, "SILENT", 0)
    assert place.run(inputs=[folder]) == 0 and place.log == []
    [line] = [line for line in capfd.readouterr().out.splitlines() if str(folder) in line]
    assert "of 60 files" in line


def test_one_that_fails_leaves_the_others_going_on(place, capfd):
    place.cell("teacher")
    place.cell("sets/bad", "teacher", "echo 'working'; echo 'error: no package POT: pip install POT' >&2; exit 2")
    place.cell("students/bad", "sets/bad")
    place.cell("deeper", "students/bad")
    place.cell("sets/good", "teacher")
    place.cell("page", "?students/bad ?sets/good")
    assert place.run() == 1
    assert place.log == ["teacher", "sets/bad", "sets/good", "page"]
    told = capfd.readouterr().err.splitlines()
    [line] = [line for line in told if line.startswith("cells: sets/bad failed: ")]
    assert "no package POT: pip install POT" in line and "2 that need it are left out" in line
    assert "working" in (place.root / "cells" / "sets" / "bad.log").read_text()
    # The same command tries what failed again, and what it has an effect on.
    place.words = [word.replace("exit 2", "true") for word in place.words]
    assert place.run() == 0 and place.log == ["sets/bad", "students/bad", "deeper", "page"]


@pytest.mark.parametrize(
    "script, told",
    [("kill -9 $$", "ended by SIGKILL"), ("exit 3", "exit code 3"), ("echo a last line; exit 1", "a last line")],
)
def test_why_it_failed(place, capfd, script, told):
    place.cell("a", script=script)
    assert place.run() == 1 and told in capfd.readouterr().err


def test_a_command_that_leaves_nothing_and_one_that_is_not_there(place, capfd):
    place.cell("a", leaves="elsewhere")
    place.words += ["b", "b", "", "1", "/nowhere/python"]
    assert place.run() == 1
    told = capfd.readouterr().err
    assert f"left no {place.root}/a" in told and "/nowhere/python: No such file" in told


def test_several_processes_share_them(place):
    for number in range(12):
        place.cell(f"cell{number}", script="sleep 0.1")
    place.cell("last", " ".join(f"cell{number}" for number in range(12)))
    processes = [place.start(workers) for workers in (1, 2)]
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert Counter(place.log) == dict.fromkeys([f"cell{number}" for number in range(12)] + ["last"], 1)
    assert place.log[-1] == "last"


def test_a_failure_is_known_to_other_processes(place):
    place.cell("bad", script="sleep 4; exit 4")
    first, second = place.start(), place.start()
    place.waits_for("bad")
    assert [process.wait(60) for process in (first, second)] == [1, 1] and place.log == ["bad"]
    assert "bad failed: exit code 4" in second.communicate()[1] and first.communicate()


def test_a_failure_from_the_future_is_tried_again(place):
    """The clock was set back since, or another machine's is ahead."""
    place.cell("it", script=f"[ -e {place.root}/mended ]")
    assert place.run() == 1
    [note] = (place.root / "cells").rglob("*.failed.json")
    os.utime(note, (note.stat().st_mtime + 7200,) * 2)
    (place.root / "mended").touch()
    assert place.run() == 0 and place.log == ["it"]


def test_a_killed_process_gives_its_cell_back(place):
    place.cell("first")
    place.cell("long", "first", f"[ -e {place.root}/go ] || sleep 30")
    place.cell("last", "long")
    killed = place.start()
    place.waits_for("long")
    killed.kill()
    killed.communicate()
    (place.root / "go").touch()
    assert place.run() == 0 and place.log == ["long", "last"]


def test_a_signal_is_passed_on_and_the_same_command_goes_on(place):
    place.cell("long", script=f"trap 'exit 143' TERM; [ -e {place.root}/go ] || {{ sleep 30 & wait $!; }}")
    place.cell("last", "long")
    process = place.start()
    place.waits_for("long")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    out, err = process.communicate()
    assert "stopped by SIGTERM" in err and "failed" not in err and place.log == ["long"]
    (place.root / "go").touch()
    assert place.run() == 0 and place.log == ["long", "last"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_ends_all_with_one_line(place, workers):
    """A limit on the size of files stands for it: the record of the first cell, with its long command, is too large."""
    place.cell("first", script=f": {'x' * 2000}")
    place.cell("last", "first")
    process = place.start(workers, before="ulimit -f 1; export PYTHONDONTWRITEBYTECODE=1;")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and place.log == ["first"]
    assert err.strip().startswith("error: ") and "too large" in err and len(err.strip().splitlines()) == 1
    assert place.run() == 0 and place.log == ["first", "last"]


def test_where_nobody_reads_the_output_the_command_is_ended(place):
    """As behind `| head`: its cell is given back, so the command must not go on."""
    talks = "for i in $(seq 300); do echo x; sleep 0.2; done"
    place.cell("long", script=f"trap 'echo ended >> {place.root}/log; exit 1' TERM; {talks}")
    process = place.start()
    place.waits_for("long")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) == 141 and "Traceback" not in err
    assert place.log == ["long", "ended"]


def test_workers_have_a_gpu_and_a_share_of_the_cpus_and_are_ranks_of_nothing(place, monkeypatch):
    for name, value in dict(RANK="3", WORLD_SIZE="8", LOCAL_RANK="3").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    show = f'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $OMP_NUM_THREADS" > {place.root}'
    for name, other in ("ab", "ba"):
        wait = f"for i in $(seq 600); do [ ! -e {place.root}/{other}.began ] || break; sleep 0.05; done"
        place.cell(name, script=f"touch {place.root}/{name}.began; {wait}; {show}/{name}.env")
    assert place.run(workers=2) == 0
    share = str(max(1, job_cpus() // 2))
    found = sorted((place.root / f"{name}.env").read_text().split() for name in "ab")
    assert found == [["0", "2", share], ["1", "2", share]]


@pytest.mark.parametrize(
    "words, told",
    [
        (["a", "file", "", "2", "sh"], "not complete"),
        (["a", "file", "", "many", "sh"], "not complete"),
        (["a", "file", "b", "1", "sh"], "needs b"),
        (["a", "file", "", "0"], "no command"),
        (["a", "file", "", "1", "sh"] * 2, "twice"),
    ],
)
def test_a_list_that_is_none(words, told):
    with pytest.raises(UserError, match=told):
        read("".join(f"{word}\0" for word in words))
