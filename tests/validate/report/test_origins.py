"""What manifests and teachers say of where a result comes from; whatever they hold, the report is made."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import few, noise
from result_files import write_manifest, write_result, write_run
from utils.data.manifest import Manifest
from validate.report import collect, origins


def test_a_recovered_set_and_its_start(tmp_path):
    write_run(tmp_path)
    assert origins.start_of(tmp_path / "syn") == tmp_path / "init"
    assert origins.updates(tmp_path / "syn") == [20] * 6 + [10] * 6
    assert origins.start_of(tmp_path / "random") is None and origins.updates(tmp_path / "random") is None
    sets = origins.image_sets(collect.read([tmp_path]))
    assert [images.title for images in sets] == ["delt, IPC 10: start", "delt, IPC 10", "random, IPC 10"]


def test_of_a_set_and_its_start_those_images_are_shown_that_were_measured(tmp_path):
    write_run(tmp_path)
    for ipc in (1, 3):
        arguments = {"ipc": ipc}
        write_result(tmp_path, "part", syn_dir=str(tmp_path / "syn"), ipc=ipc, arguments=arguments, name=f"part {ipc}")
    sets = {images.title: images for images in origins.image_sets(collect.read([tmp_path]))}
    for title, ipc in (("part, IPC 1", 1), ("part, IPC 3", 3), ("delt, IPC 10", 12)):
        for images in (sets[title], sets[f"{title}: start"]):
            shown = {name: [path.name for path in paths] for name, paths in images.paths.items()}
            assert shown == {name: [f"{position:03d}_x.png" for position in range(ipc)] for name in ("ant", "moth")}


def unfinished(run):
    record = json.loads((run / "init" / "manifest.json").read_text())
    write_manifest(run / "init", **{**record, "finished": False})


def thinned(run):
    (run / "syn" / "moth" / "003_x.png").unlink()


def emptied(run):
    for file in (run / "random" / "ant").iterdir():
        file.unlink()


START, SET, RANDOM = "delt, IPC 10: start", "delt, IPC 10", "random, IPC 10"


@pytest.mark.parametrize(
    "spoil, lost, reason",
    [(unfinished, START, "is not complete"), (thinned, SET, "moth/003_x.png is missing"), (emptied, RANDOM, "'ant'")],
)
def test_images_that_are_not_whole_are_left_out_and_named(tmp_path, capsys, spoil, lost, reason):
    write_run(tmp_path)
    spoil(tmp_path)
    sets = origins.image_sets(collect.read([tmp_path]))
    assert [images.title for images in sets] == [title for title in (START, SET, RANDOM) if title != lost]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"left out: the images of {lost} (") and reason in line


def test_a_damaged_teacher_has_no_seconds_and_is_named_once(tmp_path, capsys):
    (tmp_path / "teacher.pth").write_bytes(b"no checkpoint")
    settings = {"teachers": [hashlib.sha256(b"no checkpoint").hexdigest()]}
    write_result(tmp_path, arguments={"teacher_path": str(tmp_path / "teacher.pth")}, settings=settings)
    [entry] = measured = collect.read([tmp_path])
    assert origins.stage_seconds(measured)["delt, IPC 10, resnet18, delt"] == {"validate": 5}
    assert origins.teacher_top1(entry) is None
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("left out:") and "teacher.pth" in line


def test_a_start_that_was_moved_with_its_run(tmp_path):
    write_run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert origins.start_of(tmp_path / "new" / "syn") == tmp_path / "new" / "init"


@pytest.mark.parametrize("init, shown", [("images", True), ("noise", False)])
def test_a_set_from_noise_has_no_starting_images(place, init, shown):
    """Its --init-dir only names the classes."""
    place.works("recover", init=init, ipc=4)
    assert (origins.start_of(place.syn) == place.init) == shown
    assert origins.updates(place.syn) == [8, 6, 4, 2]


@pytest.mark.parametrize("reordered", [False, True])
def test_images_made_anew_in_the_place_of_a_start_are_no_start(place, capsys, reordered):
    """Nor are their seconds those of the set; whatever the order of the teacher's classes."""
    if reordered:
        place.reorder_teacher()
    place.works("recover", ipc=3)
    write_manifest(place.init, settings={"criterion": "medium"}, seconds=30)
    capsys.readouterr()
    assert origins.start_of(place.syn) == place.init and origins.is_traced(place.syn)
    assert origins.making(place.syn)["ranking"] == 30 and capsys.readouterr().out == ""
    noise(sorted(place.init.glob("*/*.png"))[0], 1, 32)
    assert origins.start_of(place.syn) is None and not origins.is_traced(place.syn)
    assert set(origins.making(place.syn)) == {"recover"}
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"left out: what {place.syn} started from ({place.init}: ")


def saved(path, **facts):
    """Write a checkpoint of one weight and these facts; the settings of a result whose teacher it is."""
    torch.save({"model": {"w": torch.zeros(1)}, **facts}, path)
    return {"teachers": [hashlib.sha256(path.read_bytes()).hexdigest()]}


def test_seconds_of_the_stages(tmp_path):
    write_run(tmp_path)
    teachers = saved(tmp_path / "teacher.pth", seconds=120.0, top1=91.0)
    write_result(tmp_path, "delt", "delt", arguments={"teacher_path": str(tmp_path / "teacher.pth")}, settings=teachers)
    write_result(tmp_path, "delt", "hard", settings=teachers)
    write_result(tmp_path, "random", "delt", syn_dir=str(tmp_path / "random"), settings=teachers)
    found = origins.stage_seconds(collect.read([tmp_path]))
    assert {"squeeze": 120, "ranking": 30, "recover": 60, "validate": 5} in found.values()
    assert found["random, IPC 10, resnet18, delt"] == {"validate": 5}


def test_seconds_of_students_are_compared_under_one_protocol(tmp_path):
    """Whatever the files are called: the one that all sets have, and none where there is no such one."""
    for method, protocols in (("delt", ("edc", "rded")), ("cda", ("rded",)), ("fadrm", ("cim", "rded"))):
        for protocol in protocols:
            path = write_result(tmp_path, method, protocol, syn_dir=str(tmp_path / method))
            content = json.loads(path.read_text())
            for student in content["seeds"]:
                student["seconds"] = 7.0 if protocol == "rded" else 100.0
            path.write_text(json.dumps(content))
    assert origins.stage_seconds(collect.read([tmp_path])) == {
        f"{method}, IPC 10, resnet18, rded": {"validate": 7} for method in ("cda", "delt", "fadrm")
    }
    write_result(tmp_path, "sre2l", "hard", syn_dir=str(tmp_path / "sre2l"))
    assert set(origins.stage_seconds(collect.read([tmp_path]))) == {
        f"{method}, IPC 10, resnet18" for method in ("cda", "delt", "fadrm", "sre2l")
    }
    assert not any(origins.stage_seconds(collect.read([tmp_path])).values())


@pytest.mark.parametrize("paths, seconds, top1", [(["a"], 10, 91.0), (["a", "b"], 30, None), ([], None, None)])
def test_several_teachers(tmp_path, paths, seconds, top1):
    digests = []
    for name, own in (("a", 10.0), ("b", 20.0)):
        digests += saved(tmp_path / f"{name}.pth", seconds=own, top1=91.0)["teachers"]
    files = [str(tmp_path / f"{name}.pth") for name in paths]
    write_result(tmp_path, arguments={"teacher_path": files}, settings={"teachers": digests[: len(paths)]})
    [entry] = collect.read([tmp_path])
    assert origins.stage_seconds([entry])["delt, IPC 10, resnet18, delt"].get("squeeze") == seconds
    assert origins.teacher_top1(entry) == top1


def test_a_teacher_of_another_architecture_is_no_measure_of_the_student(tmp_path):
    settings, arguments = saved(tmp_path / "a.pth", top1=91.0), {"teacher_path": str(tmp_path / "a.pth")}
    write_result(tmp_path, student="conv3", arguments=arguments, settings=settings)
    assert origins.teacher_top1(collect.read([tmp_path])[0]) is None


@pytest.mark.parametrize("epochs, top1", [(50, 91.0), (5, None)])
def test_a_teacher_of_an_early_epoch_does_not_tell_what_all_images_give(tmp_path, epochs, top1):
    settings = saved(tmp_path / "a.pth", top1=91.0, seconds=3.0, epochs=epochs, settings={"epochs": 50})
    write_result(tmp_path, arguments={"teacher_path": str(tmp_path / "a.pth")}, settings=settings)
    assert origins.teacher_top1(collect.read([tmp_path])[0]) == top1


def test_another_teacher_in_the_place_of_the_one_that_labelled_says_nothing(tmp_path, capsys):
    settings, arguments = saved(tmp_path / "a.pth", top1=91.0, seconds=3.0), {"teacher_path": str(tmp_path / "a.pth")}
    saved(tmp_path / "a.pth", top1=95.0, seconds=9.0)
    write_result(tmp_path, arguments=arguments, settings=settings)
    [entry] = collect.read([tmp_path])
    assert origins.teacher_top1(entry) is None
    assert "squeeze" not in origins.stage_seconds([entry])["delt, IPC 10, resnet18, delt"]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("left out:") and "a.pth" in line and "changed since" in line


WORDS = [
    "settings",
    "arguments",
    "images",
    "iterations",
    "round_iterations",
    "init",
    "init_dir",
    "round",
    "a/0.png",
    "units",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab1é\x00", max_size=4) | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=10,
)


@few
@given(st.dictionaries(st.sampled_from([*WORDS, "seconds"]), VALUES))
def test_any_manifest_is_no_obstacle(tmp_path_factory, content):
    run = tmp_path_factory.getbasetemp() / "origins"
    noise(run / "syn" / "a" / "0.png", 0)
    write_result(run)
    write_manifest(run / "syn", **json.loads(json.dumps(content)))
    measured = collect.read([run])
    assert origins.stage_seconds(measured)["delt, IPC 10, resnet18, delt"]["validate"] == 5
    assert origins.image_sets(measured)[-1].title == "delt, IPC 10"
    assert Manifest(content).image_count >= 0
