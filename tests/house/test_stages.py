"""What is common to the four stages, end to end: command lines in, files out, each from what the one before left."""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PIXELS, ROOT, Place, images, snapshot
from plain_teacher import logits
from result_files import COLUMNS

TRAINING = dict(seeds=2, seed=5, epochs=4, lr=0.01)
STAGES = ("squeeze", "ranking", "recover", "validate")


def in_a_chain(place):
    """The stages' command lines, each on what the one before left."""
    place.lines["squeeze"].update(output=place.teacher)
    place.lines["ranking"].update(output_dir=place.init)
    place.lines["validate"].update(syn_dir=place.syn, **TRAINING)
    return place


@pytest.fixture(scope="module")
def chain(stock, tmp_path_factory):
    """All four stages as processes of their own."""
    place = in_a_chain(Place(tmp_path_factory.mktemp("chain") / "bugs"))
    for name in ("train", "val"):
        shutil.copytree(stock / name, place / name)
    for stage in STAGES:
        done = place.spawn(stage)
        assert done.code == 0, done.err
    return place


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def curves(place):
    [path] = (place / "measured" / "results").glob("*.json")
    return [entry["curve"] for entry in json.loads(path.read_text())["seeds"]]


# --- a chain of commands ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_stage_takes_what_the_one_before_left(chain):
    positions = [f"{name}/{k:03d}" for name in ("ant", "moth", "zebra") for k in range(4)]
    for folder in (chain.init, chain.syn):
        assert [name.partition("_")[0] for name in images(folder)] == positions
    with open(chain / "measured" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["ipc"], row["seed"]) for row in rows] == [("bugs", "4", "5"), ("bugs", "4", "6")]
    assert all(row["method"].startswith("delt") and row["syn_dir"] == str(chain.syn) for row in rows)


@pytest.mark.slow
def test_the_same_commands_in_another_folder_give_the_same_bytes(chain, place):
    """Here in one process, and over a checkpoint that is there."""
    shutil.rmtree(place.init)
    in_a_chain(place)
    place.works("squeeze", overwrite=True)
    for stage in STAGES[1:]:
        place.works(stage)
    old, new = weights(chain.teacher), weights(place.teacher)
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert (place / "ranking.csv").read_bytes() == (chain / "ranking.csv").read_bytes()
    assert images(place.init) == images(chain.init)
    assert images(place.syn) == images(chain.syn)
    assert curves(place) == curves(chain)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_again_does_nothing_anew(chain, stage):
    before = snapshot(chain.root)
    assert re.search("already|complete", chain.works(stage))
    assert snapshot(chain.root) == before


@pytest.mark.slow
def test_nothing_hidden_is_left(chain):
    assert not list(chain.root.rglob(".*"))


@pytest.mark.slow
def test_another_seed_gives_another_result(place):
    """Of ranking only the random selection: the others have nothing that is random."""
    lines = {
        "squeeze": dict(epochs=1, output=place / "x.pth", overwrite=True),
        "ranking": dict(criterion="random", ranking_file=None, output_dir=place / "x", overwrite=True),
        "recover": dict(iterations=2, syn_dir=place / "x", overwrite=True),
        "validate": dict(epochs=1, labels="hard"),
    }
    for stage, line in lines.items():
        found = []
        for seed in (0, 1):
            shutil.rmtree(place / "x", ignore_errors=True)
            shutil.rmtree(place / "measured", ignore_errors=True)
            place.works(stage, **line, seed=seed)
            if stage == "squeeze":
                found.append({name: tensor.tolist() for name, tensor in weights(place / "x.pth").items()})
            else:
                found.append(curves(place) if stage == "validate" else images(place / "x"))
        assert found[0] != found[1], stage


def test_ranking_names_every_flag_of_the_design(stock):
    flags = """--dataset --seed --batch-size --workers --device --precision --compile --train-dir --teacher-arch
        --teacher-path --output-dir --ranking-file --criterion --ipc"""
    outcome = stock.run("ranking", help=True)
    assert outcome.code == 0
    assert set(flags.split()) <= set(re.findall(r"--[a-z-]+", outcome.out))


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_help_shows_what_each_flag_is_for(stock, stage):
    """And with it the default, which argparse shows behind a text."""
    shown = stock.run(stage, help=True).out
    assert re.findall(r"^  --[a-z-]+(?: \S+| \{.*\})?\n(?=  -|\n)", shown, re.MULTILINE) == []
    if stage == "squeeze":
        for flag, default in {"lr": 0.1, "lr-schedule": "onecycle", "momentum": 0.9, "weight-decay": 0.0005}.items():
            assert re.search(rf"--{flag} [^()]*\(default: {default}\)", shown), flag


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_of_every_mode_and_shape_are_read_as_rgb(place):
    folder = place.train / "ant"
    colour = Image.open(folder / "ant0.png")
    colour.convert("L").save(folder / "gray.png")
    colour.convert("LA").save(folder / "gray_alpha.png")
    colour.convert("1").save(folder / "bits.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.gif")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.resize((24, PIXELS)).save(folder / "wide.JPEG")
    colour.resize((PIXELS, 30)).save(folder / "tall.bmp")
    Image.fromarray((np.asarray(colour.convert("L")).astype(np.uint16) * 257)).save(folder / "deep.png")
    (folder / "notes.txt").write_text("not an image, and not called one")
    place.works("squeeze", epochs=1)
    place.works("ranking", ipc=7)
    with open(place / "ranking.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == "ant"]
    scores = {row["img_path"].split("/")[1]: float(row["score"]) for row in rows}
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".txt"]
    assert sorted(scores) == [file.name for file in files] and len(files) == 16
    # PIL clips 16-bit values instead of scaling them, so the 8-bit twin stands for it.
    twins = [folder / "gray.png" if file.name == "deep.png" else file for file in files]
    expected = logits(place.teacher, twins).softmax(1)[:, 0].tolist()
    assert [scores[file.name] for file in files] == pytest.approx(expected, abs=1e-5)
    place.works("recover", init_dir=place / "selected", iterations=2)
    place.works("validate", syn_dir=place.train, epochs=1)


# --- readers of what is printed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    row = f"a,delt,1,conv3,conv3,delt,0,50.0,50.0,90.0,1,1.0,syn,{'0' * 16}"
    (tmp_path / "results.csv").write_text(f"{COLUMNS}\n{row}\n")
    line = [sys.executable, "-m", "validate.report.summary", str(tmp_path)]
    whole = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0 and "50.00" in whole.stdout, whole.stderr
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head does when it has its lines
    assert process.stderr.read() == b"" and process.wait() == 141
