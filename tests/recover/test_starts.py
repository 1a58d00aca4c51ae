"""The starting images: what is read of them, and what is said where one has changed since its selection."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, ROOT, Place, images, snapshot
from recover.methods import METHODS
from recover.objectives import OBJECTIVES
from recover.settings import Settings
from refusals import refused
from utils.data import gallery
from utils.run.shared_work import SharedWork

LINE = dict(iterations=4, round_iterations=2, batch_size=4)  # one unit a class


@pytest.fixture
def selected(place) -> Place:
    """A place whose `init` is a selection by ranking, with the SHA-256 of each image in its manifest."""
    place.works("ranking")
    place.init = place / "selected"
    place.lines["recover"].update(init_dir=place.init, **LINE)
    return place


def only_two_units(self, take=SharedWork.take):
    for number, _ in zip(take(self), range(2)):
        yield number


def test_a_process_reads_the_images_of_its_own_units(selected, monkeypatch):
    """Two processes. The first has done the units of ant and moth, and the second is left with zebra's.

    Before the work the second decodes every second image, to find damage in time: of ant and moth that is four.
    """
    monkeypatch.setattr(SharedWork, "take", only_two_units)
    selected.works("recover", {"RANK": "0", "WORLD_SIZE": "2"})
    monkeypatch.undo()
    assert {name.split("/")[0] for name in images(selected.syn)} == {"ant", "moth"}

    monkeypatch.setattr(gallery, "draw", lambda *_: None)  # the contact sheet shows images of all units
    read, real = [], builtins.open

    def counting(file, *args, **options):
        if isinstance(file, (str, Path)) and Path(file).parent.parent == selected.init:
            read.append(Path(file).parent.name)
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", counting)
    selected.works("recover", {"RANK": "1", "WORLD_SIZE": "2"})
    assert len(images(selected.syn)) == 12
    assert read.count("ant") + read.count("moth") == 4
    # Decoded in the check, then compared with the manifest and decoded, once for the networks' trial and for the work.
    assert read.count("zebra") == 2 + 4 + 4


def changed(place) -> Path:
    """An image of the second unit, of other pixels since the selection."""
    path = sorted((place.init / "moth").iterdir())[1]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return path


def test_an_image_that_changed_since_its_selection_is_an_error(selected):
    path = changed(selected)
    outcome = selected.run("recover")
    assert outcome.code == 2 and outcome.err.splitlines()[-1].startswith(f"error: {path}: ")
    assert "changed" in outcome.err and "Traceback" not in outcome.err
    assert {name.split("/")[0] for name in images(selected.syn)} <= {"ant"}, "nothing was made of it"
    # What the message names as the remedy.
    (selected.init / "manifest.json").unlink()
    selected.works("recover", overwrite=True)
    assert len(images(selected.syn)) == 12


def test_an_image_that_takes_no_part_may_change(selected):
    changed(selected)
    selected.works("recover", ipc=1)
    assert len(images(selected.syn)) == 3


@pytest.mark.parametrize("manifest", [None, "{}", '{"sha256": {}}', '{"images": {"ant/000_x.png": 3}}'])
def test_a_folder_without_digests_gives_the_same_result(selected, manifest):
    selected.works("recover", syn_dir=selected / "with")
    (selected.init / "manifest.json").unlink()
    if manifest:
        (selected.init / "manifest.json").write_text(manifest)
    selected.works("recover", syn_dir=selected / "without")
    assert images(selected / "with") == images(selected / "without")
    before = snapshot(selected / "with")
    assert "complete" in selected.works("recover", syn_dir=selected / "with"), "it is the same run, too"
    assert snapshot(selected / "with") == before


def test_any_image_folder_serves(place):
    """With names, numbers and sizes of a user's own."""
    for name in CLASSES:
        files = sorted((place.init / name).iterdir())
        Image.open(files[0]).resize((40, 20)).save(place.init / name / "Wide photo.JPG")
        if name == "moth":
            files[1].unlink()
    place.works("recover", lr=0, **LINE)
    # Capitals sort first, and the smallest class has four images.
    stems = {
        name: [f"{name}{k}" for k in (0, 2, 3)] if name == "moth" else [f"{name}{k}" for k in range(3)]
        for name in CLASSES
    }
    expected = [f"{name}/{k:03d}_{stem}.png" for name in CLASSES for k, stem in enumerate(["Wide photo", *stems[name]])]
    assert list(images(place.syn)) == expected
    for name in images(place.syn):
        assert Image.open(place.syn / name).size == (INPUT, INPUT)


def test_the_number_of_a_selected_file_is_not_repeated(selected):
    selected.works("recover")
    stems = [Path(name).stem for name in images(selected.init)]
    assert [Path(name).stem for name in images(selected.syn)] == stems and all(s[:3].isdigit() for s in stems)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_noise_of_an_image_does_not_depend_on_its_batch(place, batch_size):
    line = dict(method="sre2l", init_dir=None, round_iterations=None, iterations=1, lr=0, ipc=2)
    place.works("recover", syn_dir=place / "all", **{**line, "batch_size": 6})
    place.works("recover", syn_dir=place / "few", **{**line, "batch_size": batch_size})
    assert images(place / "all") == images(place / "few")
    assert len(set(images(place / "all").values())) == 6
    assert json.loads((place / "few" / "manifest.json").read_text())["units"] == 2 * -(-3 // batch_size)


def test_classes_that_only_a_folder_names_are_a_part_of_a_run_from_noise(place):
    """Two runs into one folder would mix their images."""
    content = torch.load(place.teacher, weights_only=True)
    torch.save({**content, "classes": None}, place.teacher)
    line = dict(method="sre2l", iterations=1, round_iterations=None, ipc=2)
    place.works("recover", init_dir=place.train, **line)
    for path in list(place.train.iterdir()):
        path.rename(path.with_name(f"another {path.name}"))
    refused(place, "recover", "classes", init_dir=place.train, **line)
    assert len(list(place.syn.glob("*/*.png"))) == 6


def test_a_folder_beside_noise_is_one_of_the_teachers_classes(place):
    """Who gives it means these images, also where the teacher names its classes."""
    line = dict(method="sre2l", iterations=1, round_iterations=None, ipc=1)
    refused(place, "recover", "--init-dir", place / "nowhere", "no such folder", init_dir=place / "nowhere", **line)
    (place.train / "ant").rename(place.train / "anteater")
    refused(place, "recover", "missing: ant", "unknown: anteater", init_dir=place.train, **line)
    place.works("recover", init_dir=place.train, classes_by="position", syn_dir=place / "by position", **line)
    (place.train / "wasp").mkdir()
    shutil.copy(next(place.train.glob("moth/*")), place.train / "wasp")
    refused(place, "recover", "4 classes, not 3", init_dir=place.train, **line)
    place.works("recover", init_dir=place.init, **line)
    assert images(place.syn) == images(place / "by position")


@pytest.mark.parametrize(
    "line",
    [
        dict(method="delt", statistics=[ROOT / "LICENSE"]),
        dict(method="cim", r_bn=0.1),
        dict(method="mosaic", first_bn_multiplier=1),
        dict(first_bn_multiplier=1, r_bn=0),
        dict(min_crop=0.5, method="sre2l"),
        dict(curriculum="step", method="gvbsm", statistics=[ROOT / "LICENSE"]),
        dict(milestone=0.5, method="cim"),
        dict(curriculum="linear", method="wmdd", statistics=[ROOT / "LICENSE"]),
        dict(milestone=0.5, min_crop=1),
        dict(blend=0.2),
        dict(stage_sizes=["0.5", "1"]),
    ],
    ids=str,
)
def test_a_flag_that_nothing_reads(place, line):
    """Small images: sre2l and gvbsm have no resized crops here, and have them for large ones."""
    line = {"method": "delt", **line}
    flag = [name for name in line if name != "method"][0].replace("_", "-")
    refused(place, "recover", f"--{flag} does nothing with {line['method']}", "leave it out, or give --", **line)


@pytest.mark.parametrize(
    "line, told",
    [
        (
            dict(method="edc", objective="batchnorm", option="momentum=0.1"),
            "--option momentum=0.1 does nothing with edc, as its objective is batchnorm: leave it out, or give "
            "--objective statistics",
        ),
        (dict(method="cim", objective="batchnorm", option="augment=none"), "--objective features"),
        (dict(method="wmdd", objective="batchnorm", option="per_class=false"), "--objective wasserstein"),
        (dict(method="gvbsm", r_bn=0, option="drop=0.1", statistics=[ROOT / "LICENSE"]), "give --r-bn above 0"),
        (dict(method="edc", r_bn=0, option="class_share=0.1", statistics=[ROOT / "LICENSE"]), "give --r-bn above 0"),
        (dict(method="cda", combine="turn"), "--combine turn does nothing with one teacher"),
        (dict(statistics=[ROOT / "LICENSE"]), "give --objective statistics or wasserstein"),
    ],
    ids=str,
)
def test_what_the_objective_does_not_read(place, line, told):
    refused(place, "recover", told, **line)


def test_sizes_of_stages_that_there_are_not(place):
    told = "--stage-sizes: 3 sizes for 2 stages; leave some out"
    refused(place, "recover", told, stages=2, stage_sizes=["1", "0.5", "1"])


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_a_recipe_are_its_objectives(name):
    settings = Settings.of(METHODS[name])
    assert set(settings.options) <= set(OBJECTIVES[settings.objective].reads)


@pytest.mark.parametrize(
    "read, unread",
    [
        (dict(method="sre2l"), dict(min_crop=0.5, milestone=0.5)),
        (dict(method="delt", lr=0.1), dict(blend=0.2, option="drop=0.1")),
        (dict(method="delt", r_bn=0), dict(first_bn_multiplier=1)),
    ],
    ids=str,
)
def test_a_shared_flag_that_nothing_reads_is_left_out(place, read, unread):
    """The set is the one that is made without it, by the same name, and a line says so."""
    read = {**read, "iterations": 4}
    place.works("recover", **read)
    made = snapshot(place.syn)
    refused(place, "recover", **read, **unread)
    said = place.works("recover", **read, **unread, shared=True)
    for flag, value in unread.items():
        flag = f"option {value.split('=')[0]}" if flag == "option" else flag.replace("_", "-")
        assert said.count(f"recover: {read['method']} reads no --{flag}\n") == 1
    assert said.count("reads no") == len(unread) and "is complete" in said and snapshot(place.syn) == made


def test_a_shared_option_that_no_method_has(place):
    refused(place, "recover", "--option drip=1", "no such option", option="drip=1", shared=True)


@pytest.mark.parametrize(
    "line",
    [
        dict(method="sre2l", crop="resized", min_crop=0.5, milestone=0.5, curriculum="step"),
        dict(method="fadrm", blend=0.2, min_crop=0.5),
    ],
    ids=str,
)
def test_a_flag_that_changes_the_images(place, line):
    """It is read, as the setting that it needs is there."""
    made = []
    for folder, more in ("with", {}), ("without", dict.fromkeys({*line} - {"method", "crop"})):
        flags = {**line, **more, "iterations": 4, "round_iterations": None, "syn_dir": place / folder}
        place.works("recover", **flags)
        made.append(images(place / folder))
    assert made[0] != made[1]
