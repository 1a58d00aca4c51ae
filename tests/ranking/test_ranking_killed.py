"""ranking killed between any two of its writes, and ranking by several processes of an array job."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import CLASSES, images
from ranking import record, score, selection
from utils.run.shared_work import SharedWork

SMALL = dict(ipc=1, batch_size=2)  # 21 images: three pieces of at most 4 batches
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree")


def outputs(place):
    manifest = (place / "selected" / "manifest.json").exists()
    return *scores(place / "ranking.csv"), images(place / "selected"), manifest


def scores(path):
    """A ranking file, and its record but for the time that it took."""
    if not path.exists():
        return None, None
    return path.read_bytes(), {**json.loads(Path(f"{path}.json").read_text()), "seconds": 0}


def hidden(place):
    return sorted(str(path.relative_to(place.root)) for path in place.root.rglob(".*"))


def in_child(place, prepare, env=None, **line):
    """ranking in a forked process, after `prepare()`; its process id."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            prepare()
            outcome = place.run("ranking", env, **line)
            code = outcome.code
            sys.__stderr__.write(outcome.err)
        finally:
            os._exit(code)
    return child


def ended(child):
    """The exit code of a child; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def then_die(function):
    def called(*args, **kwargs):
        function(*args, **kwargs)
        die()

    return called


def write_number(count):
    """Kills this process just before it changes the disk for the `count`th time."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event in WRITES or (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            seen += 1
            if seen == count:
                die()

    sys.addaudithook(hook)


def others_scores(place):
    """A ranking file of another teacher and its record, which are there now: name -> bytes."""
    content = torch.load(place.teacher, weights_only=True)
    content["model"]["classifier.bias"][0] += 1
    torch.save(content, place / "other.pth")
    place.works("ranking", **SMALL, output_dir=None, teacher_path=place / "other.pth")
    return {name: (place / name).read_bytes() for name in ("ranking.csv", "ranking.csv.json")}


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "owner, name, replacement",
    [
        (SharedWork, "save", then_die(SharedWork.save)),
        (score, "write", die),
        (score, "write", then_die(score.write)),
        (record, "write", die),
        (record, "write", then_die(record.write)),
        (selection, "claim", then_die(selection.claim)),
        (selection, "copy", then_die(selection.copy)),
        (selection, "write_json", then_die(selection.write_json)),
        (SharedWork, "discard", staticmethod(die)),
        (SharedWork, "discard", staticmethod(then_die(SharedWork.discard))),
    ],
    ids=[
        "after a piece",
        "before the ranking file",
        "after the ranking file",
        "before the record",
        "between the record and the ranking file",
        "after the first manifest",
        "after the copies",
        "after the manifest",
        "before the pieces are removed",
        "after the pieces are removed",
    ],
)
def test_killed_between_two_writes_the_same_command_ends_well(place, monkeypatch, owner, name, replacement):
    place.works("ranking", **SMALL, ranking_file=place / "whole.csv", output_dir=place / "whole")
    child = in_child(place, lambda: monkeypatch.setattr(owner, name, replacement), **SMALL)
    assert ended(child) == -signal.SIGKILL
    assert hidden(place), "it was in the middle of its work"
    place.works("ranking", **SMALL)
    assert outputs(place) == (*scores(place / "whole.csv"), images(place / "whole"), True)
    assert not hidden(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        {},
        {"ranking_file": None},
        {"output_dir": None},
        {"ranking_file": None, "criterion": "k-center"},
        {"overwrite": True},
    ],
    ids=["both", "selection", "scores", "features", "another's scores"],
)
def test_killed_before_any_change_of_the_disk_the_same_command_ends_well(place, line):
    """Before the first, the second, the third, ... until it comes to its end."""
    line = {**SMALL, **line}
    before = others_scores(place) if "overwrite" in line else {}
    place.works("ranking", **line)
    whole = outputs(place)
    for count in range(1, 1000):
        for path in (place / "selected").glob("*/*"):
            path.unlink()
        for path in (*(place / "selected").glob("*"), place / "selected"):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        for name in "ranking.csv", "ranking.csv.json":
            (place / name).unlink(missing_ok=True)
            if name in before:
                (place / name).write_bytes(before[name])
        code = ended(in_child(place, lambda: write_number(count), **line))
        if code != -signal.SIGKILL:
            break
        place.works("ranking", **line)
        assert outputs(place) == whole, f"killed before change {count}"
        assert not hidden(place), f"killed before change {count}"
    assert code == 0 and outputs(place) == whole
    assert count > 20, "it was killed at many places"


# --- several processes -----------------------------------------------------------------------------------------------


def slow_to_save(log, ranks):
    """Each piece is written into `log`, and none is saved before every rank has one: so they do share the work."""
    save = SharedWork.save

    def saves(self, number, content):
        with open(log, "a") as file:
            file.write(f"{os.environ['RANK']} {number}\n")
        until = time.monotonic() + 60
        while len({line.split()[0] for line in log.read_text().splitlines()}) < ranks and time.monotonic() < until:
            time.sleep(0.01)
        save(self, number, content)

    SharedWork.save = saves


@pytest.mark.parametrize(
    "line, pieces",
    [({}, 3), ({"ranking_file": None}, 3), ({"ranking_file": None, "criterion": "k-center"}, len(CLASSES))],
    ids=["both", "selection", "features"],
)
def test_two_processes_share_the_pieces_and_give_the_bytes_of_one(place, line, pieces):
    line = {"batch_size": 2, **line}
    place.works("ranking", **line, output_dir=place / "one")
    one = scores(place / "ranking.csv")
    (place / "ranking.csv").unlink(missing_ok=True)
    log = place / "log"
    children = [
        in_child(place, lambda: slow_to_save(log, 2), {"RANK": str(rank), "WORLD_SIZE": "2"}, **line)
        for rank in range(2)
    ]
    assert [ended(child) for child in children] == [0, 0]
    entries = [entry.split() for entry in log.read_text().splitlines()]
    assert {rank for rank, _ in entries} == {"0", "1"}
    assert sorted(int(number) for _, number in entries) == list(range(pieces)), "each piece is done once"
    assert outputs(place) == (*one, images(place / "one"), True)
    assert not hidden(place)


@pytest.mark.parametrize(
    "line", [{}, {"ranking_file": None}, {"output_dir": None}], ids=["both", "selection", "scores"]
)
def test_whoever_finds_all_pieces_done_puts_them_together(place, line):
    """Here a process that is not rank 0, which has ended before."""
    line = {**SMALL, **line}
    place.works("ranking", **line)
    whole = outputs(place)
    for path in sorted(place.root.rglob("*"), reverse=True):
        if "selected" in path.parts or path.name == "ranking.csv":
            path.rmdir() if path.is_dir() else path.unlink()

    def waits_with_the_last():
        take = SharedWork.take

        def takes(self):
            for number in take(self):
                if number == self.count - 1:
                    break  # it is left to the other process
                yield number

        SharedWork.take = takes

    first = in_child(place, waits_with_the_last, {"RANK": "0", "WORLD_SIZE": "2"}, **line)
    assert ended(first) == 0
    assert not (place / "ranking.csv").exists() and not (place / "selected").exists()
    place.works("ranking", {"RANK": "1", "WORLD_SIZE": "2"}, **line)
    assert outputs(place) == whole
    assert not hidden(place)


@pytest.mark.parametrize("line", [{}, {"criterion": "random", "ranking_file": None}], ids=["scored", "random"])
def test_where_nothing_is_to_be_scored_rank_0_selects_and_the_others_say_so(place, line):
    if not line:
        place.works("ranking", **SMALL, output_dir=None)
    other = place.works("ranking", {"RANK": "1", "WORLD_SIZE": "2"}, **SMALL, **line)
    assert "rank 0 makes the selection" in other and not (place / "selected").exists()
    place.works("ranking", {"RANK": "0", "WORLD_SIZE": "2"}, **SMALL, **line)
    assert len(images(place / "selected")) == 3 and not hidden(place)
