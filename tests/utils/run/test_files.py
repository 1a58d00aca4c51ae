"""Files that appear whole or not at all, and digests."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from helpers import tree
from utils.run import files
from utils.run.errors import UserError
from utils.run.files import replacing


def test_replacing(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "one" and tree(path.parent) == ["x.txt"]
    for error in ValueError, KeyboardInterrupt:
        with pytest.raises(error):
            with replacing(path) as temporary:
                temporary.write_text("tw")
                assert path.read_text() == "one"
                raise error
        assert path.read_text() == "one" and tree(path.parent) == ["x.txt"]


def test_a_copy_is_written_where_it_differs_and_else_left_as_it_is(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"one")
    assert files.copy(source, target) and target.read_bytes() == b"one"
    before = target.stat()
    assert not files.copy(source, target) and target.stat().st_ino == before.st_ino
    target.write_bytes(b"another")
    assert files.copy(source, target) and target.read_bytes() == b"one" and tree(tmp_path) == ["source", "target"]


def test_replacing_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, host = ended.pid, files.machine()
    left = f".x|[*].{host}.{dead}.partial.txt"
    stays = [
        f".x|[*].{host}.{os.getppid()}.partial.txt",  # at work just now, perhaps
        f".x|[*].another-machine.{dead}.partial.txt",
        f".x|[*].{host}.{dead}.partial.png",
        f".y.{host}.{dead}.partial.txt",
        f".x|[*].{host}.mine.partial.txt",
    ]
    for name in [left, *stays]:
        (tmp_path / name).touch()
    with replacing(tmp_path / "x|[*].txt") as temporary:
        temporary.write_text("one")
    assert tree(tmp_path) == sorted([*stays, "x|[*].txt"])


def test_containers_with_one_name_do_not_write_into_the_same_file(tmp_path):
    """Each has a process 1, for example."""
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from utils.run.files import replacing
        with replacing({str(tmp_path / "x.txt")!r}) as temporary:
            print(os.getpid(), temporary.name)
        """
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    told = [subprocess.run([*inside, sys.executable, "-c", code], text=True, capture_output=True) for _ in range(2)]
    told += [subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)]
    numbers, names = zip(*(one.stdout.split() for one in told))
    assert numbers[0] == numbers[1] and numbers[2] not in names[0] and f".{numbers[0]}." in names[0]
    assert names[0].split(numbers[0])[0] != names[2].split(numbers[2])[0]


def test_what_other_machines_left_is_removed_a_day_later(tmp_path):
    young, old = (tmp_path / f".x.pod-{age}.4026531836.7.partial.txt" for age in ("young", "old"))
    for path, hours in {young: 23, old: 25}.items():
        path.touch()
        os.utime(path, (path.stat().st_mtime - 3600 * hours,) * 2)
    with replacing(tmp_path / "x.txt") as temporary:
        temporary.touch()
    assert tree(tmp_path) == sorted([young.name, "x.txt"])


def test_an_error_of_writing_names_the_file(tmp_path):
    with pytest.raises(OSError) as raised, replacing(tmp_path / "x.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as an open file's write has it
    assert raised.value.filename == str(tmp_path / "x.txt") and raised.value.errno == errno.ENOSPC


def test_a_copy_that_finds_no_room_names_the_copy(tmp_path, monkeypatch):
    """shutil names what it reads from."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    (tmp_path / "source").write_text("one")
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError) as raised:
        files.copy(tmp_path / "source", tmp_path / "target")
    assert raised.value.filename == str(tmp_path / "target") and tree(tmp_path) == ["source"]


def test_who_dies_when_the_file_appears_leaves_nothing_of_those_before(tmp_path, monkeypatch):
    """It is there, so that nobody writes it again."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".x.{files.machine()}.{ended.pid}.partial.txt").touch()
    replace = os.replace

    def dies(*names):
        replace(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("one")
    assert tree(tmp_path) == ["x.txt"]


def test_a_temporary_name_is_known_as_one(tmp_path):
    for name in ("x.txt", "x.tar.gz", "no ending", "x.partial.json"):
        with replacing(tmp_path / name) as temporary:
            temporary.touch()
            assert files.PARTIAL.match(temporary.name)
        assert not files.PARTIAL.match(name)


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"ü": [1, 2.5, None, True, "\u2028"], "empty": {}}
    files.write_json(tmp_path / "new" / "x.json", value)
    assert files.read_json(tmp_path / "new" / "x.json") == value
    assert "ü" in (tmp_path / "new" / "x.json").read_text(encoding="utf-8"), "readable as it stands"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[1, 2", b"[" * 100_000, None],
    ids=["empty", "one brace", "no text", "cut", "too deep", "missing"],
)
def test_a_damaged_json_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match="x.json: not a readable JSON file"):
        files.read_json(tmp_path / "x.json")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    for size in (0, 5, (1 << 20) - 1, 1 << 20, (2 << 20) + 3):
        content = os.urandom(size)
        (tmp_path / "x").write_bytes(content)
        assert files.sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_its_keys():
    assert files.digest({"a": 1, "b": {"c": 2, "d": 3}}) == files.digest({"b": {"d": 3, "c": 2}, "a": 1})
    values = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, ["a", 1], {}, [], None]
    assert len({files.digest(value) for value in values}) == len(values)


def test_differences_name_what_differs_and_nothing_else():
    found = files.differences({"lr": 0.25, "seed": 0, "old": 1}, {"lr": 0.1, "seed": 0, "new": "x" * 99})
    assert found == f"lr: 0.25 -> 0.1, new: None -> {'x' * 12}..., old: 1 -> None"


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "b" * 255, "é" * 125 + ".png", "c" * 100 + "." + "d" * 154])
def test_the_longest_names_can_be_replaced(tmp_path, name):
    path = tmp_path / name
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert files.PARTIAL.match(temporary.name)
    assert path.read_text() == "one" and tree(tmp_path) == [name]


def test_the_temporary_names_of_long_names_differ(tmp_path):
    with replacing(tmp_path / ("a" * 250 + "1.png")) as one, replacing(tmp_path / ("a" * 250 + "2.png")) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["one", "other"]


def test_names_are_shortened_to_what_fits():
    assert files.shortened("000_x.png") == "000_x.png"
    names = [f"000_{letter * 249}{end}.jpeg" for letter in ("a", "é"[:1]) for end in "12"]
    cut = [files.shortened(name) for name in names]
    assert len(set(cut)) == len(names)
    for name, short in zip(names, cut):
        assert len(short.encode()) <= 255 and short.startswith(name[:100]) and short.endswith(".jpeg")


def test_a_folder_behind_a_link_that_leads_nowhere_yet_is_made(tmp_path):
    (tmp_path / "link").symlink_to("far/away")
    with replacing(tmp_path / "link" / "deep" / "x.txt") as temporary:
        temporary.write_text("one")
    assert (tmp_path / "far/away/deep/x.txt").read_text() == "one" and (tmp_path / "link").is_symlink()
