"""Shared work: each piece is done once by whatever process is free, and given back by one that dies."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from multiprocessing import get_context

import pytest

from helpers import tree
from utils.run import shared_work
from utils.run.shared_work import SharedWork

IDENTITY = {"teacher": "abc", "seed": 0}


class Folder:
    """Where a test's processes work: the records in `work`, and beside them a log of what each process did."""

    def __init__(self, root):
        self.root, self.work, self.log = root / "place", root / "place" / ".units", root / "log"
        self.root.mkdir()

    def shared(self, count, identity=IDENTITY):
        return SharedWork(self.work, identity, count)

    def note(self, number):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {number}\n")  # one write, which no other process can split

    def notes(self):
        """(process, piece) in the order of taking."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [tuple(map(int, line.split())) for line in lines]

    def do(self, count, seconds=0.0, enough=lambda notes: True):
        """Do pieces until there are none, each for so many seconds and until the notes are `enough`.

        Returns the records, if all are done.
        """
        with self.shared(count) as work:
            for number in work.take():
                self.note(number)
                time.sleep(seconds)
                self.wait_until(enough)
                work.save(number, {"square": number**2})
            return work.records()

    def wait_for(self, notes):
        self.wait_until(lambda found: len(found) >= notes)

    def wait_until(self, enough):
        until = time.monotonic() + 60
        while not enough(self.notes()):
            assert time.monotonic() < until
            time.sleep(0.002)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def fork(function, *args):
    """A process that calls `function` and ends; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(*children):
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_every_piece_is_done_once_by_several_processes(folder):
    children = [fork(folder.do, 40, 0, lambda notes: len({process for process, _ in notes}) == 3) for _ in range(3)]
    assert ended(*children) == [0, 0, 0]
    assert sorted(number for _, number in folder.notes()) == list(range(40))
    assert {process for process, _ in folder.notes()} == set(children)
    assert folder.shared(40).records() == [{"square": number**2} for number in range(40)]
    assert folder.shared(40).missing() == [] and not [name for name in tree(folder.work) if name.startswith(".")]


def test_a_slow_process_does_fewer_pieces_than_a_fast_one(folder):
    slow = fork(folder.do, 24, 0, lambda notes: len(notes) >= 20)
    folder.wait_for(1)
    fast = fork(folder.do, 24)
    assert ended(slow, fast) == [0, 0]
    done = Counter(process for process, _ in folder.notes())
    assert done[slow] + done[fast] == 24 and 1 <= done[slow] <= 5


def test_pieces_are_chosen_when_they_are_asked_for(folder):
    with folder.shared(4) as work:
        pieces = work.take()
        assert next(pieces) == 0
        assert ended(fork(folder.do, 4)) == [0]
        assert [number for _, number in folder.notes()] == [1, 2, 3], "the first is in progress here"
        assert list(pieces) == []
        assert work.missing() == [0] and work.records() is None
        work.save(0, {})
    assert folder.shared(4).missing() == []


def hold(folder, count):
    with folder.shared(count) as work:
        folder.note(next(work.take()))
        time.sleep(100)


def test_a_killed_process_gives_its_piece_back(folder):
    holder = fork(hold, folder, 3)
    folder.wait_for(1)
    assert folder.do(3) is None, "one piece is not done"
    assert [number for _, number in folder.notes()] == [0, 1, 2] and folder.shared(3).missing() == [0]
    os.kill(holder, signal.SIGKILL)
    assert ended(holder) == [-signal.SIGKILL]
    assert folder.do(3) == [{"square": 0}, {"square": 1}, {"square": 4}]
    assert [number for _, number in folder.notes()][3:] == [0]
    assert tree(folder.work) == ["000000.json", "000001.json", "000002.json"], "the killed process's lock is gone too"


def test_a_piece_that_was_passed_is_taken_once_its_holder_is_killed(folder):
    holder = fork(hold, folder, 3)
    folder.wait_for(1)
    with folder.shared(3) as work:
        for number in work.take():
            folder.note(number)
            work.save(number, {})
            if number == 2:
                os.kill(holder, signal.SIGKILL)
                ended(holder)
    assert [number for _, number in folder.notes()] == [0, 1, 2, 0] and folder.shared(3).missing() == []


def test_an_error_gives_the_piece_back(folder):
    with pytest.raises(ValueError), folder.shared(2) as work:
        for number in work.take():
            assert number == 0
            raise ValueError
    assert tree(folder.work) == []
    assert ended(fork(folder.do, 2)) == [0] and folder.shared(2).missing() == []


# --- records ------------------------------------------------------------------------------------------------------


def changed(entry, **changes):
    return json.dumps({**entry, **changes})


DAMAGE = {
    "cut": lambda entry: json.dumps(entry)[:-9],
    "empty": lambda entry: "",
    "another kind of JSON": lambda entry: "[1, 2]",
    "a number": lambda entry: "3",
    "other content": lambda entry: changed(entry, content={"square": 5}),
    "another checksum": lambda entry: changed(entry, sha256="0" * 64),
    "no content": lambda entry: json.dumps({name: entry[name] for name in ("identity", "sha256")}),
    "no checksum": lambda entry: json.dumps({name: entry[name] for name in ("identity", "content")}),
    "no identity": lambda entry: json.dumps({name: entry[name] for name in ("sha256", "content")}),
}


def test_work_of_other_settings_is_not_replaced_without_a_word(folder, capsys):
    """Nor is it said of pieces that are done, or done again because what they name is gone."""
    folder.do(2)
    gone = SharedWork(folder.work, IDENTITY, 3, lambda number: number == 0)
    with gone as work:
        assert list(work.take()) == [1, 2]
    assert capsys.readouterr().out == ""
    with folder.shared(3, IDENTITY | {"seed": 1}) as work:
        assert list(work.take()) == [0, 1, 2]
    assert capsys.readouterr().out == f"{folder.work}: holds work of other settings or images, which this replaces\n"


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_named_and_done_again(folder, capsys, damage):
    folder.do(3)
    path = folder.work / "000001.json"
    path.write_text(damage(json.loads(path.read_text())))
    assert folder.shared(3).missing() == [1]
    printed = capsys.readouterr().out
    assert f"{path}: damaged" in printed and "piece 1 is done again" in printed
    assert folder.do(3) == [{"square": 0}, {"square": 1}, {"square": 4}]
    assert [number for _, number in folder.notes()] == [0, 1, 2, 1]
    capsys.readouterr()
    assert folder.shared(3).missing() == [] and capsys.readouterr().out == ""


def test_records_of_other_work_are_not_used(folder, capsys):
    folder.do(2)
    other = folder.shared(2, {**IDENTITY, "seed": 1})
    assert other.missing() == [0, 1] and other.record(0) is None and other.records() is None
    assert capsys.readouterr().out == "", "they are not damaged"
    with other as work:
        for number in work.take():
            work.save(number, {"square": -1})
    assert other.records() == [{"square": -1}] * 2
    assert folder.shared(2).missing() == [0, 1]


def test_a_piece_may_ask_for_more_than_its_record(folder):
    folder.do(3)
    (folder.root / "a").touch()
    work = SharedWork(folder.work, IDENTITY, 3, lambda number: number != 2 or (folder.root / "b").exists())
    assert work.missing() == [2] and list(work.take()) == [2]


# --- the end ------------------------------------------------------------------------------------------------------


def put_together(folder, count, seconds=0.0):
    """What a stage does: its pieces, and the end where all are done."""
    if folder.do(count, seconds) is not None:
        folder.shared(count).remove()


def test_nothing_is_left_after_the_end(folder):
    put_together(folder, 3)
    assert tree(folder.root) == []
    folder.shared(3).remove()
    assert tree(folder.root) == []


def test_a_process_that_is_late_finds_no_pieces_after_the_end(folder):
    """It asked for its next piece when another process had put everything together."""
    with folder.shared(4) as work:
        pieces = work.take()
        work.save(next(pieces), {"square": 0})
        assert ended(fork(put_together, folder, 4)) == [0]
        assert tree(folder.root) == []
        assert list(pieces) == []
    assert [number for _, number in folder.notes()] == [1, 2, 3]
    assert tree(folder.root) == []


@pytest.mark.parametrize("moment", ["before it locks", "when it has locked"])
def test_the_end_may_come_at_any_moment_of_another_process_s_choice(folder, monkeypatch, moment):
    """Between its looking for a record, its taking of the lock, and its second look."""
    FileLock, codes = shared_work.FileLock, []

    def elsewhere(*function):
        monkeypatch.setattr(shared_work, "FileLock", FileLock)
        codes.extend(ended(fork(*function)))

    def save_and_remove():  # by the process that did the piece just before the lock was taken here
        work = folder.shared(1)
        work.save(0, {})
        work.remove()

    class Slow(FileLock):
        def acquire(self, **options):
            if moment == "before it locks":
                elsewhere(put_together, folder, 1)
            found = super().acquire(**options)
            if moment == "when it has locked":
                elsewhere(save_and_remove)
            return found

    monkeypatch.setattr(shared_work, "FileLock", Slow)
    with folder.shared(1) as work:
        assert list(work.take()) == []
    assert codes == [0] and tree(folder.root) == []


@pytest.mark.parametrize("moment", ["made", "making", "locking"])
def test_the_folder_may_vanish_while_a_process_begins(folder, monkeypatch, moment):
    """Another one puts everything together once the folder was found or made, before it is opened or has a lock."""
    vanished = []

    def vanish():
        vanished.append(folder.work)
        folder.shared(1).remove()

    def make_folder(path):
        os.makedirs(path, exist_ok=True)
        vanish()
        if moment == "making":  # what mkdir says where the folder was there, and is none any more
            raise FileExistsError(17, "File exists", str(path))

    class Locking(shared_work.FileLock):
        def acquire(self, **options):
            vanish()
            raise FileExistsError(17, "File exists", str(folder.work))

    if moment == "locking":
        monkeypatch.setattr(shared_work, "FileLock", Locking)
    else:
        monkeypatch.setattr(shared_work, "make_folder", make_folder)
    with folder.shared(1) as work:
        assert list(work.take()) == []
    assert vanished and tree(folder.root) == []


def test_a_file_in_the_place_of_the_folder_is_an_error(folder):
    folder.work.write_text("")
    with pytest.raises(FileExistsError):
        list(folder.shared(1).take())


def test_a_kill_within_the_removal_is_cleaned_by_the_next_one(folder):
    folder.do(3)
    rmtree = shutil.rmtree

    def killed(path, **options):
        if os.path.exists(path):
            os.kill(os.getpid(), signal.SIGKILL)
        rmtree(path, **options)

    def remove():
        shared_work.shutil.rmtree = killed
        folder.shared(3).remove()

    assert ended(fork(remove)) == [-signal.SIGKILL]
    assert not folder.work.exists() and len(tree(folder.root)) == 4, "the records lie under another name"
    assert folder.shared(3).missing() == [0, 1, 2]
    folder.shared(3).remove()
    assert tree(folder.root) == []


@pytest.mark.slow
def test_processes_that_end_together_do_nothing_twice_and_leave_nothing(folder):
    processes, count = 4, 12
    for _ in range(30):
        folder.log.unlink(missing_ok=True)
        folder.work.mkdir()
        barrier = get_context("fork").Barrier(processes)

        def work(barrier=barrier):
            barrier.wait()
            put_together(folder, count, 0.002)  # so that all have begun before the end

        assert ended(*(fork(work) for _ in range(processes))) == [0] * processes
        assert sorted(number for _, number in folder.notes()) == list(range(count))
        assert tree(folder.root) == []
