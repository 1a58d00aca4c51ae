"""What is finished survives a power cut: it is on disk before it gets its name, and before a record says so."""

import contextlib
import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import images
from helpers import tree
from utils import from_tensors
from utils.data import prepare
from utils.run import files
from utils.run.files import flush_folder, make_folder, replacing, write_text


@pytest.fixture
def disk(monkeypatch):
    """What is asked of the disk, in order: ("flush", path), ("all", folder), ("rename", path)."""
    asked = []
    fsync, rename, everything = os.fsync, os.replace, files.flush_folder

    def flushing(opened):
        asked.append(("flush", os.readlink(f"/proc/self/fd/{opened}")))
        fsync(opened)

    def renaming(source, target):
        rename(source, target)
        asked.append(("rename", str(target), str(source)))

    def flushing_all(folder):
        asked.append(("all", os.path.abspath(folder)))
        everything(folder)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", renaming)
    for module in ("ranking.selection", "utils.run.outputs"):
        monkeypatch.setattr(f"{module}.flush_folder", flushing_all)
    return asked


def test_a_file_is_on_disk_before_it_has_its_name_and_its_folder_afterwards(tmp_path, disk):
    write_text(tmp_path / "x.txt", "here")
    [(first, temporary), (then, target, source), (last, folder)] = disk
    assert (first, then, last) == ("flush", "rename", "flush")
    assert temporary == source and target == str(tmp_path / "x.txt") and folder == str(tmp_path)


def test_a_new_folder_is_noted_in_the_one_above(tmp_path, disk):
    make_folder(tmp_path / "a" / "b")
    assert disk == [("flush", str(tmp_path)), ("flush", str(tmp_path / "a"))]


@pytest.mark.parametrize("syncfs", [True, False])
def test_a_folder_with_all_that_is_in_it(tmp_path, disk, monkeypatch, syncfs):
    for name in ("a/x", "a/b/y", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    asked = []

    class Library:
        def __init__(self, *_, **__):
            if syncfs:
                self.syncfs = lambda opened: asked.append(os.readlink(f"/proc/self/fd/{opened}")) or 0

    monkeypatch.setattr(files.ctypes, "CDLL", Library)
    flush_folder(tmp_path)
    if syncfs:
        assert asked == [str(tmp_path)] and not disk
    else:
        everything = {str(tmp_path / name) for name in tree(tmp_path)} | {str(tmp_path)}
        assert everything <= {path for _, path in disk}


@pytest.mark.parametrize("number, is_error", [(errno.EIO, True), (errno.EDQUOT, True), (errno.EINVAL, False)])
def test_a_disk_that_does_not_take_it(tmp_path, monkeypatch, number, is_error):
    """Network disks report what they could not write only now. Some file systems cannot be asked."""
    (tmp_path / "x").write_text("old")

    def failing(opened):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError) if is_error else contextlib.nullcontext() as error, replacing(tmp_path / "x") as new:
        new.write_text("new")
    assert (tmp_path / "x").read_text() == ("old" if is_error else "new") and tree(tmp_path) == ["x"]
    assert not is_error or error.value.errno == number and error.value.filename


def test_a_stage_names_what_the_disk_did_not_take(place, monkeypatch):
    def failing(opened):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    outcome = place.run("recover", batch_size=4)
    assert outcome.code == 2 and len(outcome.err.strip().splitlines()) == 1 and str(place.root) in outcome.err


def test_the_images_of_a_unit_are_on_disk_before_its_record(place, disk):
    place.works("recover", batch_size=4)
    units = [at for at, what in enumerate(disk) if what[0] == "rename" and "/.units/" in what[1]]
    records = [at for at in units if disk[at][1].endswith(".json")]
    assert len(records) == 3
    for number, (at, name) in enumerate(zip(records, ("ant", "moth", "zebra"))):
        flushed = {path for what, path, *_ in disk[: at - 1] if what == "flush"}
        own = [str(path) for path in (place.syn / name).iterdir()]
        assert len(own) == 4 and {*own, str(place.syn / name)} <= flushed, number
    [manifest] = [at for at, what in enumerate(disk) if what[1].endswith("manifest.json") and what[0] == "rename"][1:]
    assert manifest > max(records)


def test_a_selection_is_on_disk_before_its_manifest_says_that_it_is_finished(place, disk):
    place.works("ranking")
    manifests = [at for at, what in enumerate(disk) if what[0] == "rename" and what[1].endswith("manifest.json")]
    copied = [at for at, what in enumerate(disk) if what[0] == "rename" and what[1].endswith(".png")]
    [everything] = [at for at, what in enumerate(disk) if what == ("all", str(place / "selected"))]
    assert len(copied) == len(images(place / "selected")) == 12
    assert max(copied) < everything < max(manifests)
    flushed = {Path(path).parent.name for what, path, *_ in disk if what == "flush"}
    assert not flushed & {"ant", "moth", "zebra"}, "not one by one"


@pytest.mark.parametrize("module", ["utils.data.prepare", "utils.from_tensors"])
def test_a_folder_is_on_disk_before_it_has_its_name_and_the_one_above_afterwards(tmp_path, disk, monkeypatch, module):
    output = tmp_path / "data" / "out"
    if module == "utils.data.prepare":
        prepare.prepare("fashion_mnist_cut", None, output)
    else:
        np.savez(tmp_path / "s.npz", images=np.zeros((4, 3, 8, 8), np.float32), labels=np.arange(4) // 2)
        monkeypatch.setattr(sys, "argv", [module, str(tmp_path / "s.npz"), str(output)])
        from_tensors.main()
    [(at, partial)] = [(at, what[2]) for at, what in enumerate(disk) if what[0] == "rename" and what[1] == str(output)]
    assert ("all", partial) in disk[:at] and ("flush", str(output.parent)) in disk[at:]


@pytest.mark.parametrize("stage, output", [("squeeze", "squeezed.pth"), ("validate", "measured/results.csv")])
def test_a_result_is_on_disk_before_the_state_is_removed(place, disk, monkeypatch, stage, output):
    unlink = Path.unlink

    def unlinking(path, missing_ok=False):
        if path.name.endswith(".state") and "partial" not in path.name:
            disk.append(("remove", str(path)))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinking)
    place.works(stage, save_every=0)
    path = place / output
    kinds = [what[0] for what in disk]
    removed = kinds.index("remove")
    renamed = max(at for at, what in enumerate(disk) if what[0] == "rename" and what[1] == str(path))
    assert ("flush", str(path.parent)) in disk[renamed:removed]
