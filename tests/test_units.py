"""Work units, and the folder that knows which of them are finished."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import few, tree
from recover.units import Store, split
from utils.files import UserError

shapes = {"classes": st.integers(1, 12), "ipc": st.integers(1, 9), "batch": st.integers(1, 30)}


def members(units):
    return [member for unit in units for member in unit.members]


def every(classes, ipc):
    return [(label, rank) for label in range(classes) for rank in range(ipc)]


@few
@given(**shapes)
def test_units_by_class(classes, ipc, batch):
    if batch < ipc:
        with pytest.raises(UserError, match="--batch-size"):
            split(classes, ipc, batch, "class")
        return
    units = split(classes, ipc, batch, "class")
    assert sorted(members(units)) == every(classes, ipc)
    for unit in units:
        labels = {label for label, _ in unit.members}
        whole = [(label, rank) for label in sorted(labels) for rank in range(ipc)]
        assert sorted(unit.members) == whole
        assert len(unit.members) <= batch
    assert len(units) == -(-classes // (batch // ipc)), "batches are filled"
    assert [unit.number for unit in units] == list(range(len(units)))


@few
@given(**shapes)
def test_units_by_index(classes, ipc, batch):
    units = split(classes, ipc, batch, "index")
    assert sorted(members(units)) == every(classes, ipc)
    for unit in units:
        assert len({rank for _, rank in unit.members}) == 1
        assert len(unit.members) <= batch
    assert len(units) == ipc * -(-classes // batch), "batches are filled"
    assert [unit.number for unit in units] == list(range(len(units)))


def test_batch_smaller_than_a_class():
    with pytest.raises(UserError) as error:
        split(10, 50, 49, "class")
    assert "49" in str(error.value) and "50" in str(error.value)
    assert len(split(10, 50, 50, "class")) == 10


# --- Store ------------------------------------------------------------------------------------------------------

CLASSES, IPC = 2, 3
NAMES = {(label, rank): f"c{label}/{rank:03d}_x.png" for label, rank in every(CLASSES, IPC)}
ROUNDS = {member: member[1] // 2 for member in NAMES}  # 0, 0, 1
UNITS = split(CLASSES, IPC, IPC, "class")


def store(folder, settings=None, rank=0, overwrite=False):
    return Store(folder, settings or {"lr": 0.25}, NAMES, ROUNDS, rank, overwrite)


def pixels(unit):
    return torch.randint(256, (len(unit.members), 3, 4, 4), generator=torch.Generator().manual_seed(unit.number)).byte()


def filled(folder):
    made = store(folder)
    for unit in UNITS:
        made.save(unit, pixels(unit), seconds=1.0)
    return made


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_set_from_start_to_end(tmp_path):
    made = store(tmp_path / "syn")
    for number, unit in enumerate(UNITS):
        assert not made.finished(unit)
        assert not made.complete(UNITS) and not manifest(tmp_path / "syn")["finished"]
        made.save(unit, pixels(unit), seconds=1.5)
        assert [made.finished(other) for other in UNITS] == [k <= number for k in range(len(UNITS))]
    assert made.complete(UNITS, teacher_sha256="abc", seconds=9)
    assert tree(tmp_path / "syn") == sorted(["c0", "c1", "manifest.json", *NAMES.values()])

    record = manifest(tmp_path / "syn")
    assert {name: entry["round"] for name, entry in record["images"].items()} == {NAMES[m]: ROUNDS[m] for m in NAMES}
    assert record["settings"] == {"lr": 0.25} and record["teacher_sha256"] == "abc" and record["seconds"] == 9
    assert record["finished"] and record["units"] == 2 and record["unit_seconds"] == 3.0
    for unit in UNITS:
        for member, image in zip(unit.members, pixels(unit)):
            with Image.open(tmp_path / "syn" / NAMES[member]) as found:
                assert np.array_equal(np.asarray(found), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("harm", ["deleted", "cut", "other bytes", "record lost"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_damaged_image_makes_its_unit_unfinished(tmp_path, harm, folded):
    folder = tmp_path / "syn"
    made = filled(folder)
    if folded:
        assert made.complete(UNITS)
    elif harm == "record lost":
        made.record_path(UNITS[1]).unlink()
    victim = folder / NAMES[1, 2]
    if harm == "deleted":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-9])
    elif harm == "other bytes":
        shutil.copy(folder / NAMES[1, 1], victim)
    again = store(folder)
    assert [again.finished(unit) for unit in UNITS] == [True, folded and harm == "record lost"]
    again.save(UNITS[1], pixels(UNITS[1]), seconds=1.0)
    assert again.finished(UNITS[1]) and again.complete(UNITS)
    assert sorted(manifest(folder)["images"]) == sorted(NAMES.values())
    assert tree(folder) == sorted(["c0", "c1", "manifest.json", *NAMES.values()])


def test_a_finished_set_is_left_as_it_is(tmp_path):
    filled(tmp_path / "syn").complete(UNITS)
    before = tree(tmp_path / "syn")
    again = store(tmp_path / "syn")
    assert all(again.finished(unit) for unit in UNITS)
    assert tree(tmp_path / "syn") == before


def test_two_ranks_make_one_set(tmp_path):
    ranks = [store(tmp_path / "syn", rank=rank) for rank in range(2)]
    ranks[0].save(UNITS[0], pixels(UNITS[0]), seconds=1.0)
    assert not ranks[0].complete(UNITS)
    ranks[1].save(UNITS[1], pixels(UNITS[1]), seconds=1.0)
    assert ranks[1].complete(UNITS)
    assert ranks[0].complete(UNITS), "the other rank has folded the records already"
    assert sorted(manifest(tmp_path / "syn")["images"]) == sorted(NAMES.values())


def test_another_run_is_refused_unless_told_to_overwrite(tmp_path):
    folder = tmp_path / "syn"
    filled(folder)
    before = tree(folder)
    with pytest.raises(UserError, match=r"lr: 0.25 -> 0.1.*--overwrite") as error:
        store(folder, {"lr": 0.1})
    assert str(folder) in str(error.value)
    assert tree(folder) == before and manifest(folder)["settings"] == {"lr": 0.25}
    replaced = store(folder, {"lr": 0.1}, overwrite=True)
    assert not any(replaced.finished(unit) for unit in UNITS)
    assert manifest(folder)["settings"] == {"lr": 0.1} and not list(folder.rglob("*.png"))


def test_overwrite_goes_on_with_the_same_run(tmp_path):
    filled(tmp_path / "syn")
    assert all(store(tmp_path / "syn", overwrite=True).finished(unit) for unit in UNITS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_nobody_claimed_is_never_emptied(tmp_path, overwrite):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        store(tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == ["mine.txt"]


def test_a_run_killed_while_it_claimed_its_folder_can_start_again(tmp_path):
    # What SIGKILL leaves between the writing of the manifest and its renaming.
    (tmp_path / f".manifest.{os.uname().nodename}.4711.partial.json").write_text('{"sett')
    assert not store(tmp_path).finished(UNITS[0])
