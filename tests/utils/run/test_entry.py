"""The way into a stage: which errors become one line, and how their traceback is seen."""

import errno
import os
import sys

import pytest

from utils.run import entry
from utils.run.errors import UserError


def ended(main, capsys, monkeypatch, *words, debug=None):
    """(exit code, what it wrote to stderr) of a stage with this main and these words."""
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, words)])
    monkeypatch.delenv("DELT_DEBUG", raising=False)
    if debug:
        monkeypatch.setenv("DELT_DEBUG", debug)
    with pytest.raises(SystemExit) as end:
        entry.run(main)
    return end.value.code, capsys.readouterr().err


def raises(error):
    def main():
        raise error

    return main


def test_an_error_is_one_line(capsys, monkeypatch):
    code, err = ended(raises(UserError("this\nis wrong")), capsys, monkeypatch)
    assert (code, err) == (2, "error: this is wrong\n")


@pytest.mark.parametrize("debug, shown", [("1", True), ("0", False)])
def test_the_traceback_is_shown_where_it_was_asked_for(capsys, monkeypatch, debug, shown):
    def main():
        try:
            {}["what was looked for"]
        except KeyError:
            raise UserError("a short line") from None

    code, err = ended(main, capsys, monkeypatch, debug=debug)
    assert code == 2 and err.endswith("error: a short line\n")
    assert ("Traceback" in err and "KeyError: 'what was looked for'" in err) == shown


def test_the_traceback_of_a_disk_s_error_too(capsys, monkeypatch):
    code, err = ended(raises(OSError(errno.ENOSPC, "No space left on device")), capsys, monkeypatch, debug="1")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: writing: No space left")


@pytest.mark.parametrize(
    "given, path",
    [
        ("out", "out"),
        ("out", "out/a/0.png"),
        ("out/a/b", "out"),  # a folder above it
        ("out", ".out.lock"),
        ("out/ranking.csv", "out/.ranking.machine.123.partial.csv"),
        ("--output-dir=out", "out/a"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_path_that_the_user_gave_is_one_line(capsys, monkeypatch, tmp_path, given, path, number):
    monkeypatch.chdir(tmp_path)
    word = given if given.startswith("--") else tmp_path / given
    error = OSError(number, os.strerror(number), str(tmp_path / path))
    code, err = ended(raises(error), capsys, monkeypatch, word)
    assert code == 2 and err.startswith(f"error: {tmp_path / path}: {os.strerror(number)}") and err.count("\n") == 1


def test_a_path_behind_a_link_that_the_user_gave_is_his(capsys, monkeypatch, tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "scratch" / "a"))
    assert ended(raises(error), capsys, monkeypatch, tmp_path / "link")[0] == 2


@pytest.mark.parametrize("path", ["facts/of_the_program.json", "/no/such/part/of/the/program", "out.d/x", "png"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOTDIR])
def test_a_path_of_the_program_keeps_its_traceback(monkeypatch, tmp_path, path, number):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "--output-dir", "given/out", "--image-format", "p", "--ipc", "3"])
    with pytest.raises(OSError):
        entry.run(raises(OSError(number, os.strerror(number), path)))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_full_or_read_only_disk_is_one_line_wherever_it_is(capsys, monkeypatch, number):
    code, err = ended(raises(OSError(number, os.strerror(number), "/anywhere")), capsys, monkeypatch)
    assert code == 2 and err.startswith(f"error: /anywhere: {os.strerror(number)}") and err.count("\n") == 1


def test_an_error_of_a_missing_file_without_a_name_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stage", "/"])
    with pytest.raises(FileNotFoundError):
        entry.run(raises(FileNotFoundError(errno.ENOENT, "No such file or directory")))
