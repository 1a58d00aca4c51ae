"""The folder that knows which units are done: damage, several processes, other runs."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tree
from recover.synthetic_set import SyntheticSet
from recover.units import split
from utils.run.errors import UserError
from utils.run.files import machine

CLASSES, IPC = 2, 3
UNITS = split(CLASSES, IPC, IPC, "class")
NAMES = {member: f"c{member[0]}/{member[1]:03d}_x.png" for unit in UNITS for member in unit.members}
FACTS = {member: {"round": member[1] // 2} for member in NAMES}  # 0, 0, 1
WHOLE = sorted(["c0", "c1", "manifest.json", *NAMES.values()])


def synthetic_set(folder, settings=None, overwrite=False):
    made = SyntheticSet(folder, settings or {"lr": 0.25}, UNITS, NAMES)
    made.claim(overwrite)
    return made


def pixels(unit):
    return torch.randint(256, (len(unit.members), 3, 4, 4), generator=torch.Generator().manual_seed(unit.number)).byte()


def save(made, unit, seconds=1.0):
    made.save(unit, pixels(unit), [FACTS[member] for member in unit.members], seconds)


def filled(folder):
    made = synthetic_set(folder)
    for unit in UNITS:
        save(made, unit)
    return made


def missing(made):
    return [unit.number for unit in made.missing()]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_set_from_start_to_end(tmp_path):
    folder = tmp_path / "syn"
    made = synthetic_set(folder)
    for unit, left in zip(made.take(), ([0, 1], [1])):
        assert missing(made) == left
        assert not made.complete() and not manifest(folder)["finished"]
        save(made, unit, seconds=1.5)
    assert missing(made) == [] and made.complete(method="delt", rounds=2)
    assert tree(folder) == WHOLE

    record = manifest(folder)
    assert {name: entry["round"] for name, entry in record["images"].items()} == {
        name: int(name[3:6]) // 2 for name in NAMES.values()
    }
    assert record["settings"] == {"lr": 0.25} and record["method"] == "delt" and record["rounds"] == 2
    assert record["finished"] and record["units"] == 2 and record["seconds"] == 3.0
    for unit in UNITS:
        for member, image in zip(unit.members, pixels(unit)):
            with Image.open(folder / NAMES[member]) as found:
                assert np.array_equal(np.asarray(found), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("harm", ["deleted", "cut", "other bytes", "record lost"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_unit_with_a_damaged_image_is_missing(tmp_path, harm, complete):
    folder = tmp_path / "syn"
    made = filled(folder)
    if complete:
        assert made.complete()
    elif harm == "record lost":
        (folder / ".units" / "000001.json").unlink()
    victim = folder / NAMES[1, 2]
    if harm == "deleted":
        victim.unlink()
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-9])
    elif harm == "other bytes":
        shutil.copy(folder / NAMES[1, 1], victim)
    again = synthetic_set(folder)
    assert missing(again) == ([] if complete and harm == "record lost" else [1])
    save(again, UNITS[1])
    assert missing(again) == [] and again.complete()
    assert sorted(manifest(folder)["images"]) == sorted(NAMES.values())
    assert tree(folder) == WHOLE


def test_seconds_are_those_of_all_that_was_done(tmp_path):
    filled(tmp_path / "syn").complete()
    (tmp_path / "syn" / NAMES[0, 0]).unlink()
    again = synthetic_set(tmp_path / "syn")
    save(again, UNITS[0], seconds=4.0)
    assert again.complete() and manifest(tmp_path / "syn")["seconds"] == again.seconds == 6.0


@pytest.mark.parametrize("lost", [False, True])
def test_seconds_are_not_counted_twice_if_it_was_killed_before_the_records_were_removed(tmp_path, monkeypatch, lost):
    folder = tmp_path / "syn"
    with monkeypatch.context() as patch:
        patch.setattr("utils.run.shared_work.SharedWork.remove", lambda self: None)
        filled(folder).complete(peak=1)
    before = (folder / "manifest.json").read_bytes()
    again = synthetic_set(folder)
    if lost:
        (folder / NAMES[1, 0]).unlink()
        save(again, UNITS[1], seconds=4.0)
    assert again.complete(peak=2) and tree(folder) == WHOLE
    if lost:
        assert manifest(folder)["seconds"] == 6.0 and manifest(folder)["unit_seconds"] == [1.0, 5.0]
    else:
        assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("units", [None, [1.0], "ab", {"0": 1.0}])
def test_seconds_of_a_set_that_does_not_say_those_of_its_units(tmp_path, units):
    folder = tmp_path / "syn"
    filled(folder).complete()
    content = manifest(folder)
    del content["unit_seconds"]
    if units is not None:
        content["unit_seconds"] = units
    (folder / "manifest.json").write_text(json.dumps(content))
    assert synthetic_set(folder).complete() and manifest(folder) == content
    (folder / NAMES[0, 0]).unlink()
    again = synthetic_set(folder)
    save(again, UNITS[0], seconds=4.0)
    assert again.complete() and manifest(folder)["seconds"] == 6.0


def test_a_finished_set_is_left_as_it_is(tmp_path):
    filled(tmp_path / "syn").complete()
    before = (tmp_path / "syn" / "manifest.json").read_bytes()
    again = synthetic_set(tmp_path / "syn")
    assert again.finished and missing(again) == []
    assert again.complete() and tree(tmp_path / "syn") == WHOLE
    assert (tmp_path / "syn" / "manifest.json").read_bytes() == before


def processes(monkeypatch, folder, overwrite=False):
    """The set as each of two processes has it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        made.append(SyntheticSet(folder, {"lr": 0.1} if overwrite else {"lr": 0.25}, UNITS, NAMES))
    return made


def test_two_processes_make_one_set(tmp_path, monkeypatch):
    first, second = processes(monkeypatch, tmp_path / "syn")
    first.claim(overwrite=False), second.claim(overwrite=False)
    own, others = first.take(), second.take()
    assert (next(own).number, next(others).number) == (0, 1), "nobody takes a unit that another process has"
    assert missing(first) == missing(second) == [0, 1], "as none of them is done"
    save(first, UNITS[0])
    assert next(own, None) is None and not first.complete()
    save(second, UNITS[1])
    assert second.complete()
    assert first.complete(), "the other process has put the records together already"
    assert sorted(manifest(tmp_path / "syn")["images"]) == sorted(NAMES.values())
    assert tree(tmp_path / "syn") == WHOLE


def test_a_process_that_is_to_overwrite_waits_for_the_first(tmp_path, monkeypatch):
    """Only rank 0 removes another run: what the others had claimed by then would go with it."""
    folder = tmp_path / "syn"
    filled(folder).complete()
    first, second = processes(monkeypatch, folder, overwrite=True)
    waiting = threading.Thread(target=second.claim, args=(True,))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and manifest(folder)["settings"] == {"lr": 0.25}
    first.claim(True)
    waiting.join(20)
    assert not waiting.is_alive() and missing(second) == [0, 1]
    assert manifest(folder)["settings"] == {"lr": 0.1} and not list(folder.rglob("*.png"))


def test_another_run_is_refused_without_overwrite(tmp_path):
    folder = tmp_path / "syn"
    filled(folder)
    before = tree(folder)
    with pytest.raises(UserError, match=r"lr: 0.25 -> 0.1.*--overwrite") as error:
        synthetic_set(folder, {"lr": 0.1})
    assert str(folder) in str(error.value)
    assert tree(folder) == before and manifest(folder)["settings"] == {"lr": 0.25}
    replaced = synthetic_set(folder, {"lr": 0.1}, overwrite=True)
    assert missing(replaced) == [0, 1]
    assert manifest(folder)["settings"] == {"lr": 0.1} and not list(folder.rglob("*.png"))


def test_overwrite_resumes_the_same_run(tmp_path):
    filled(tmp_path / "syn")
    assert missing(synthetic_set(tmp_path / "syn", overwrite=True)) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_no_run_claimed_is_never_emptied(tmp_path, overwrite):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        synthetic_set(tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == ["mine.txt"]


def test_a_run_killed_while_it_claimed_its_folder_can_start_again(tmp_path):
    # What SIGKILL leaves between the writing of the manifest and its renaming.
    (tmp_path / f".manifest.{machine()}.4711.partial.json").write_text('{"sett')
    assert missing(synthetic_set(tmp_path)) == [0, 1]
