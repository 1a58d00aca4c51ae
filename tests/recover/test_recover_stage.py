"""python -m recover as its users meet it: command lines in, a synthetic set out."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from conftest import CLASSES, COLOURS, INPUT, draw, images, snapshot

IPC = 4
SRE2L = dict(init_dir=None, init="noise", batch_by="index", milestone=0, round_iterations=0)


@pytest.fixture(scope="module")
def made(stock, tmp_path_factory):
    """A whole run, which nothing changes."""
    place = stock.copied(tmp_path_factory.mktemp("made"))
    place.works("recover")
    return place


def manifest(place):
    return json.loads((place.syn / "manifest.json").read_text())


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def start(path):
    """A starting image as recover sees it: INPUT pixels."""
    return np.asarray(Image.open(path).convert("RGB").resize((INPUT, INPUT), Image.Resampling.BILINEAR)).astype(float)


def changes(place):
    """How far each image is from its start, in mean grey levels."""
    pairs = zip(images(place.syn), images(place.init), strict=True)
    return [np.abs(pixels(place.syn / after) - start(place.init / before)).mean() for after, before in pairs]


# --- a whole run -------------------------------------------------------------------------------------------------


def test_the_synthetic_set_has_the_form_of_the_selection(made):
    found = images(made.syn)
    positions = [f"{name}/{position:03d}" for name in CLASSES for position in range(IPC)]
    assert [name.partition("_")[0] for name in found] == positions
    for name in found:
        with Image.open(made.syn / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (INPUT, INPUT))
    listed = torchvision.datasets.ImageFolder(made.syn)
    assert listed.classes == list(CLASSES)
    assert listed.targets == [label for label in range(3) for _ in range(IPC)]


def test_late_images_stay_closer_to_their_start(made):
    """Group 0 has 8 iterations at the full rate, group 3 the last two, at a small one."""
    by_position = np.reshape(changes(made), (3, IPC)).mean(0)
    assert by_position[0] > by_position[1] > by_position[2] > by_position[3] > 0.1
    assert by_position[0] > 4 * by_position[3]


def test_the_manifest_says_how_the_set_was_made(made):
    found = manifest(made)
    arguments, settings = found["arguments"], found["settings"]
    assert (arguments["iterations"], arguments["round_iterations"], arguments["batch_size"]) == (8, 2, 8)
    assert (arguments["syn_dir"], arguments["init_dir"]) == (str(made.syn), str(made.init))
    # The settings are those and, where nothing was given, the published ones.
    assert (settings["iterations"], settings["round_iterations"], settings["batch_size"]) == (8, 2, 8)
    assert (settings["lr"], settings["r_bn"], settings["jitter"], settings["min_crop"]) == (0.25, 0.01, 0, 0.08)
    assert (settings["curriculum"], settings["milestone"], settings["seed"]) == ("cosine", 1, 0)
    assert (settings["first_bn_multiplier"], settings["batch_by"]) == (10, "class")
    assert found["method"] == "delt iterations=8 round_iterations=2" and found["classes"] == list(CLASSES)
    assert found["teachers"] == [{"arch": "conv3", "sha256": hashlib.sha256(made.teacher.read_bytes()).hexdigest()}]
    for module in (torch, torchvision, np):
        assert found["versions"][module.__name__] == module.__version__.partition("+")[0]
    # In tenths, of which work as small as this need not have one.
    assert found["seconds"] == round(sum(found["unit_seconds"]), 1) and min(found["unit_seconds"]) > 0
    assert found["peak_memory_mb"] > 10
    rounds = {name: position % IPC for position, name in enumerate(images(made.syn))}
    assert {name: entry["round"] for name, entry in found["images"].items()} == rounds
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in images(made.syn).items()}
    assert {name: entry["sha256"] for name, entry in found["images"].items()} == digests


def test_the_contact_sheet_is_a_picture(made):
    with Image.open(made.syn / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and min(sheet.size) > 300
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_the_same_command_in_another_folder_gives_the_same_bytes(made, place):
    place.works("recover")
    assert images(place.syn) == images(made.syn)


def test_the_same_command_again_does_nothing_anew(made):
    before = snapshot(made.root)
    assert "complete" in made.works("recover")
    assert snapshot(made.root) == before


def test_a_lost_contact_sheet_is_drawn_again(made, place):
    shutil.copytree(made.syn, place.syn)
    (place.syn / "contact_sheet.png").unlink()
    place.works("recover")
    assert (place.syn / "contact_sheet.png").read_bytes() == (made.syn / "contact_sheet.png").read_bytes()
    assert images(place.syn) == images(made.syn)
    assert (place.syn / "manifest.json").read_bytes() == (made.syn / "manifest.json").read_bytes()


def test_killed_before_the_records_are_removed_the_times_stay(made, place, monkeypatch):
    """The sheet is drawn after that, so by the next command, which changes nothing in the manifest."""
    with monkeypatch.context() as patch:
        patch.setattr("utils.run.shared_work.SharedWork.remove", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.run("recover")
    before = (place.syn / "manifest.json").read_bytes()
    assert min(manifest(place)["unit_seconds"]) > 0 and not (place.syn / "contact_sheet.png").exists()
    place.works("recover", workers=0)
    assert (place.syn / "manifest.json").read_bytes() == before
    assert (place.syn / "contact_sheet.png").exists() and not (place.syn / ".units").exists()


def test_another_seed_gives_another_result(made, place):
    place.works("recover", seed=1)
    assert images(place.syn).keys() == images(made.syn).keys()
    assert all(images(place.syn)[name] != content for name, content in images(made.syn).items())


def test_help_names_every_flag_of_the_design(stock):
    outcome = stock.run("recover", help=True)
    flags = (
        "--dataset --seed --batch-size --workers --device --precision --compile --teacher-arch --teacher-path --ipc "
        "--method --init-dir --syn-dir --iterations --round-iterations --lr --r-bn --first-bn-multiplier --jitter "
        "--curriculum --milestone --min-crop --init --batch-by --image-format"
    )
    assert outcome.code == 0
    assert set(flags.split()) <= set(re.findall(r"--[a-z-]+", outcome.out))


# --- class k is class k by name ----------------------------------------------------------------------------------


@pytest.fixture
def reordered(place):
    place.reorder_teacher()
    return place


def probabilities(path, files):
    """What the conv3 in checkpoint `path` says of each image file of INPUT pixels: class name -> probability."""
    content = torch.load(path, weights_only=True)
    weights, x = content["model"], torch.tensor(np.stack([pixels(file) for file in files]) / 255)
    x = ((x - torch.tensor(content["mean"])) / torch.tensor(content["std"])).permute(0, 3, 1, 2).float()
    for d in range(3):
        norm = [weights[f"layers.norm.{d}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = F.conv2d(x, weights[f"layers.conv.{d}.weight"], weights[f"layers.conv.{d}.bias"], padding=1)
        x = F.avg_pool2d(F.batch_norm(x, *norm).relu(), 2)
    rows = F.linear(x.flatten(1), weights["classifier.weight"], weights["classifier.bias"])
    return [dict(zip(content["classes"], row.softmax(0).tolist())) for row in rows]


@pytest.mark.parametrize("init", ["images", "noise"])
def test_an_image_becomes_what_the_teacher_calls_its_folder(reordered, init):
    line = {**SRE2L, "ipc": 2} if init == "noise" else {"round_iterations": 0}
    reordered.works("recover", iterations=30, r_bn=0, **line)
    files = sorted(reordered.syn.glob("*/*.png"))
    assert len(files) == (6 if init == "noise" else 12)
    for file, found in zip(files, probabilities(reordered.teacher, files)):
        assert found[file.parent.name] > 0.7


# --- resume and parallel -----------------------------------------------------------------------------------------

SMALL_UNITS = dict(iterations=4, round_iterations=2, ipc=2, batch_size=2)  # one unit a class


@pytest.fixture(scope="module")
def unbroken(stock, tmp_path_factory):
    place = stock.copied(tmp_path_factory.mktemp("unbroken"))
    place.works("recover", **SMALL_UNITS)
    return place


def test_what_is_lost_or_damaged_is_made_again_and_nothing_else(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    lost, damaged = sorted((place.syn / "ant").iterdir())[0], sorted((place.syn / "moth").iterdir())[1]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    kept = snapshot(place.syn / "zebra")
    place.works("recover", **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert snapshot(place.syn / "zebra") == kept
    assert manifest(place)["images"] == manifest(unbroken)["images"]


def test_a_run_that_was_killed_resumes_with_what_is_finished(unbroken, place, monkeypatch):
    from recover import synthetic_set

    save = synthetic_set.save_image

    def dies_at_the_fourth_image(path, image, **options):
        if path.parent.name == "moth" and path.name.startswith("001"):
            raise KeyboardInterrupt
        save(path, image, **options)

    monkeypatch.setattr(synthetic_set, "save_image", dies_at_the_fourth_image)
    assert place.run("recover", **SMALL_UNITS).code == 130
    assert len(images(place.syn)) == 3 and not (place.syn / "contact_sheet.png").exists()
    monkeypatch.undo()
    kept = snapshot(place.syn / "ant")
    place.works("recover", **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert snapshot(place.syn / "ant") == kept
    assert not (place.syn / ".units").exists()


def test_two_processes_make_together_what_one_makes(unbroken, place):
    """The first is killed in its second unit, and the second takes what is left."""
    from recover.engine import Recovery

    def dies(self, *args, run=Recovery.run):
        if self.name == 1:
            raise KeyboardInterrupt
        return run(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recovery, "run", dies)
        assert place.run("recover", {"RANK": "0", "WORLD_SIZE": "2"}, **SMALL_UNITS).code == 130
    assert {name.split("/")[0] for name in images(place.syn)} == {"ant"}
    kept = snapshot(place.syn / "ant")
    place.works("recover", {"RANK": "1", "WORLD_SIZE": "2"}, **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert snapshot(place.syn / "ant") == kept
    assert (place.syn / "contact_sheet.png").exists()
    assert manifest(place)["images"] == manifest(unbroken)["images"]


def test_a_finished_set_stays_an_image_folder_when_the_command_is_given_again(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    place.works("recover", **SMALL_UNITS)
    assert torchvision.datasets.ImageFolder(place.syn).classes == list(CLASSES)


def test_overwrite_replaces_another_run(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    place.works("recover", **{**SMALL_UNITS, "ipc": 1}, overwrite=True)
    assert [name.partition("_")[0] for name in images(place.syn)] == [f"{name}/000" for name in CLASSES]
    assert manifest(place)["arguments"]["ipc"] == 1


# --- ways of recovering ------------------------------------------------------------------------------------------


def test_sre2l_needs_no_starting_images(place):
    shutil.rmtree(place.init)
    place.works("recover", **SRE2L, ipc=2)
    positions = [f"{name}/{k:03d}" for name in CLASSES for k in range(2)]
    assert [name.partition("_")[0] for name in images(place.syn)] == positions
    first, second = sorted((place.syn / "ant").iterdir())
    assert np.abs(pixels(first) - pixels(second)).mean() > 5


def test_without_rounds_every_image_is_optimised_from_the_start(place):
    place.works("recover", round_iterations=0, batch_by="index")
    assert {entry["round"] for entry in manifest(place)["images"].values()} == {0}
    assert min(changes(place)) > max(changes(place)) / 4  # with rounds the last ones change by less than a tenth


def test_without_a_learning_rate_the_images_stay_what_they_were(place):
    for name, colour in COLOURS.items():
        shutil.rmtree(place.init / name)
        draw(place.init / name, colour, 2, name, INPUT)
    place.works("recover", lr=0)
    for old, new in zip(sorted(place.init.glob("*/*")), sorted(place.syn.glob("*/*")), strict=True):
        assert new.parent.name == old.parent.name
        assert np.array_equal(pixels(new), pixels(old))


def test_jpeg_on_request(place):
    place.works("recover", image_format="jpg")
    found = images(place.syn)
    assert len(found) == 12 and all(name.endswith(".jpg") for name in found)
    for name in found:
        with Image.open(place.syn / name) as image:
            assert (image.format, image.size) == ("JPEG", (INPUT, INPUT))
    place.works("validate", syn_dir=place.syn, epochs=1)


def test_the_sheet_goes_where_it_is_asked_for(place):
    place.works("recover", iterations=2, contact_sheet=place / "sheets" / "mine.png")
    assert Image.open(place / "sheets" / "mine.png").format == "PNG"
    assert not (place.syn / "contact_sheet.png").exists()
