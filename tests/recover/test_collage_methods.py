"""Methods that begin with collages, end to end with few steps: rded, cim, and delt from either's images."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD, Place, images
from plain_teacher import features_and_logits
from recover.needs import needs
from recover.objectives.features import FeatureMatching
from refusals import refused

IPC = 2
LINE = dict(method="cim", iterations=6, round_iterations=None)


def ranking_flags(method, where=""):
    """The flags that a method needs of ranking, as this file's command lines have them."""
    words = needs(method, where).ranking.split()
    return {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def pixels(path):
    return np.asarray(Image.open(path)).astype(float)


@pytest.fixture(scope="module")
def started(stock, tmp_path_factory):
    """The collages of both methods: whole images for cim, crops for rded."""
    place = Place(tmp_path_factory.mktemp("collages") / "place")
    shutil.copytree(stock.root, place.root)
    for path in sorted(place.train.glob("*/*")):  # 14 images a class, of which 8 are needed
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path.with_name(f"more_{path.name}"))
    place.works("ranking", **ranking_flags("cim"), ipc=IPC, ranking_file=None, output_dir=place / "cim")
    place.works("ranking", **ranking_flags("rded", "224"), ipc=IPC, ranking_file=None, output_dir=place / "rded")
    return place


@pytest.fixture
def place(started, tmp_path):
    """A copy of them, whose manifests lead to the copy's originals."""
    shutil.copytree(started.root, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path)
    for name in ("cim", "rded"):
        record = manifest(place / name)
        (place / name / "manifest.json").write_text(json.dumps({**record, "train_dir": str(place.train)}))
    return place


# --- cim -------------------------------------------------------------------------------------------------------------


def normalised(picture):
    return torch.tensor((np.asarray(picture) / 255 - MEAN) / STD).permute(2, 0, 1)


def distance(place, folder):
    """The mean difference of features of the tiles of collages, enlarged by Pillow, to those of their originals."""
    found, side = [], INPUT // 2
    for path, tiles in manifest(place / "cim")["tiles"].items():
        collage = Image.open(folder / path)
        parts = [(x, y, x + side, y + side) for y in (0, side) for x in (0, side)]
        shown = [collage.crop(part).resize((INPUT, INPUT), Image.Resampling.BILINEAR) for part in parts]
        real = [
            Image.open(place.train / tile["path"]).resize((INPUT, INPUT), Image.Resampling.BILINEAR) for tile in tiles
        ]
        own, goal = (
            features_and_logits(place.teacher, torch.stack([normalised(picture) for picture in pictures]))[0]
            for pictures in (shown, real)
        )
        found.append((own - goal).abs().mean().item())
    return sum(found) / len(found)


def test_cim_brings_features_of_tiles_to_those_of_their_originals(place):
    place.works("recover", **{**LINE, "iterations": 40}, init_dir=place / "cim")
    names = images(place.syn)
    assert set(names) == set(images(place / "cim")) and len(names) == len(CLASSES) * IPC
    assert distance(place, place.syn) < 0.7 * distance(place, place / "cim")
    record = manifest(place.syn)
    assert record["method"] == "cim iterations=40" and record["finished"]
    settings = record["settings"]
    assert (settings["learn"], settings["clamp"], settings["crop"], settings["flip"]) == (
        "difference",
        False,
        "none",
        False,
    )
    assert (settings["optimizer"], settings["lr"], settings["weight_decay"]) == ("adamw", 0.01, 0.01)


def test_cim_changes_little_in_few_steps(place):
    """The difference begins at zero; AdamW moves each value by at most about the rate in a step."""
    place.works("recover", **{**LINE, "iterations": 1}, init_dir=place / "cim")
    for path in images(place.syn):
        change = np.abs(pixels(place.syn / path) - pixels(place / "cim" / path))
        assert change.max() <= np.ceil(0.01 * max(STD) * 255) + 0.5
        assert change.max() >= 0.5


def test_students_find_the_tiles_of_a_set_themselves(place):
    """Collages, what recover made of them, and that again; images that are none are looked at whole."""
    place.works("recover", **{**LINE, "iterations": 1}, init_dir=place / "cim")
    place.works("recover", init_dir=place.syn, syn_dir=place / "delt", iterations=2, round_iterations=1)
    place.works("ranking", criterion="random", ipc=IPC, ranking_file=None, output_dir=place / "random")
    found = {}
    for name in ("cim", "syn", "delt", "random"):
        place.works("validate", syn_dir=place / name, output_dir=place / f"of_{name}", tiles="set", method=name)
        (result,) = (place / f"of_{name}" / "results").glob("*.json")
        record = json.loads(result.read_text())
        assert record["protocol"].endswith("tiles=set"), "so that they are compared"
        found[name] = record["settings"].get("tiles", 1)
    assert found == {"cim": 2, "syn": 2, "delt": 2, "random": 1}


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_cim_stopped_within_a_unit_gives_the_same_bytes(place, monkeypatch, steps):
    """Two units of 6 steps, stopped in the first or in the second one."""
    line = {**LINE, "init_dir": place / "cim", "batch_size": 4}
    place.works("recover", **line, syn_dir=place / "whole")
    count, forward = 0, FeatureMatching.forward

    def counting(self, batch):
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(FeatureMatching, "forward", counting)
    assert place.run("recover", **line).code == 128 + signal.SIGTERM
    place.works("recover", **line)
    assert count == 12, "no step was computed twice"
    assert images(place.syn) == images(place / "whole")


def test_mosaic_is_fewer_and_longer_steps_of_cim_from_other_originals(place):
    assert ranking_flags("mosaic") == {"criterion": "top", "candidates": "2x", "tiles": "2"}
    assert needs("mosaic").protocol == "mosaic"
    place.works("recover", **{**LINE, "iterations": 40}, lr=0.05, init_dir=place / "cim")
    assert manifest(place.syn)["method"] == "mosaic"
    before = images(place.syn)
    line = {**LINE, "method": "mosaic", "iterations": None, "init_dir": place / "cim"}
    assert "complete" in place.works("recover", **line)
    assert images(place.syn) == before


def test_cim_of_crops_takes_the_crops_as_originals(place):
    place.works("recover", **LINE, init_dir=place / "rded")
    assert set(images(place.syn)) == set(images(place / "rded"))


def test_cim_with_several_teachers(place):
    place.works("recover", **LINE, init_dir=place / "cim", teacher_path=[place.teacher] * 2)
    place.works("recover", **LINE, init_dir=place / "cim", syn_dir=place / "one")
    # The same teacher twice draws two augmentations a step.
    assert images(place.syn) != images(place / "one")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_cim_compiled_is_the_same_but_for_rounding(place):
    for compile in ("on", "off"):
        outcome = place.spawn("recover", **LINE, init_dir=place / "cim", syn_dir=place / compile, compile=compile)
        assert outcome.code == 0, outcome.err
    for name in images(place / "on"):
        assert np.abs(pixels(place / "on" / name) - pixels(place / "off" / name)).max() <= 1


def test_cim_with_a_batch_size_that_is_found(place):
    place.works("recover", **LINE, init_dir=place / "cim", batch_size="auto")
    assert len(images(place.syn)) == len(CLASSES) * IPC


def test_cim_without_collages_is_refused(place):
    refused(place, "recover", place.init, "names no tiles", "ranking --tiles", **LINE)
    refused(place, "recover", "not noise", **LINE, init="noise", ipc=IPC)


def test_cim_without_an_original_is_refused(place):
    path = place.train / manifest(place / "cim")["tiles"][next(iter(images(place / "cim")))][2]["path"]
    content = path.read_bytes()
    path.unlink()
    refused(place, "recover", path, "not there", "ranking", **LINE, init_dir=place / "cim")
    path.write_bytes(content + b"changed")
    outcome = place.run("recover", **LINE, init_dir=place / "cim")
    assert outcome.code == 2 and f"{path}: has changed" in outcome.err


def test_cim_with_an_augmentation_that_there_is_not(place):
    refused(place, "recover", "augment=blur", **LINE, init_dir=place / "cim", option="augment=blur")


def test_other_originals_are_another_run(place):
    place.works("recover", **LINE, init_dir=place / "cim")
    record = manifest(place / "cim")
    first = next(iter(record["tiles"]))
    record["tiles"][first].reverse()
    (place / "cim" / "manifest.json").write_text(json.dumps(record))
    outcome = place.run("recover", **LINE, init_dir=place / "cim")
    assert outcome.code == 2 and "originals" in outcome.err and "--overwrite" in outcome.err


# --- rded, and delt on top of both -----------------------------------------------------------------------------------


def test_rded_needs_no_recover(place):
    found = needs("rded", "224")
    assert found.recovers is False and found.protocol == "rded"
    assert ranking_flags("rded", "224") == dict(criterion="top", candidates="300", crops="5", tiles="2")
    assert ranking_flags("rded", "32")["tiles"] == ranking_flags("rded", "tinyimagenet")["tiles"] == "1"
    place.works("validate", syn_dir=place / "rded", protocol="rded", shuffle_patches=2)
    [path] = (place / "measured" / "results").glob("*.json")
    assert json.loads(path.read_text())["ipc"] == IPC


@pytest.mark.parametrize("start", ["rded", "cim"])
def test_delt_begins_with_any_collages(place, start):
    place.works("recover", init_dir=place / start, iterations=4, round_iterations=2)
    before, after = images(place / start), images(place.syn)
    assert set(before) == set(after)
    assert all(before[path] != after[path] for path in before)
    assert {entry["round"] for entry in manifest(place.syn)["images"].values()} == {0, 1}


def test_delt_begins_with_what_cim_has_made(place):
    place.works("recover", **LINE, init_dir=place / "cim", syn_dir=place / "learnt")
    place.works("recover", init_dir=place / "learnt", iterations=4, round_iterations=2)
    assert set(images(place.syn)) == set(images(place / "learnt"))


def test_cims_students_see_tiles(place):
    place.works("recover", **LINE, init_dir=place / "cim")
    assert needs("cim").protocol == "cim"
    place.works("validate", syn_dir=place.syn, protocol="cim")
    [path] = (place / "measured" / "results").glob("*.json")
    settings = json.loads(path.read_text())["settings"]
    assert (settings["tiles"], settings["batch_augment"], settings["loss"]) == (2, "dsa", "mse")
