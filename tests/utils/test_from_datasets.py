"""Sets that the library `datasets` loads from a shared folder, or has saved. Offline, in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT, Outcome, images, snapshot
from helpers import tree
from utils import from_datasets
from utils.run.errors import UserError

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("datasets"), reason="the library datasets is not installed"
)
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train/*/*
  drop_labels: false
---
"""
# Writes what a user of the library sees of a folder, and saves it in two ways.
SCRIPT = """
import json, sys
from datasets import load_dataset
folder, saved = sys.argv[1:]
found = load_dataset(folder)
rows = [[split.features["label"].int2str(row["label"]), row["label"], row["image"].convert("RGB").tobytes().hex()]
        for split in found.values() for row in split]
print(json.dumps({"splits": list(found), "names": found["train"].features["label"].names, "rows": rows}))
found.save_to_disk(saved)
found["train"].to_parquet(saved + ".parquet")
"""

# Several command lines of utils.from_datasets in one process, as the library takes seconds to import.
SEVERAL = """
import json, sys
from utils import from_datasets
from utils.run import entry
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        entry.run(from_datasets.main)
    except SystemExit as end:
        print(f"exit code {end.code}", file=sys.stderr)
"""


def start(place, *words):
    """A command in a process of its own, without network and with a cache of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=ROOT, env=environment, text=True, capture_output=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def loaded(place, folder):
    outcome = start(place, "-c", SCRIPT, folder, place / "saved")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out.splitlines()[-1])


def back(place, source, *words, output="back"):
    return start(place, "-m", "utils.from_datasets", place / source, place / output, *words)


@pytest.mark.slow
def test_a_shared_set_goes_there_and_back(place):
    """Loaded without code in the teacher's order; saved by the library, made an ImageFolder, and labelled as before."""
    order = place.reorder_teacher()
    place.works("recover")
    record = json.loads((place.syn / "manifest.json").read_text())
    for number, entry in enumerate(record["images"].values()):
        entry["weight"] = 1 + number / 10
    (place.syn / "manifest.json").write_text(json.dumps(record))
    place.works("validate", syn_dir=place.syn, method="x", save_labels=place / "labels")
    words = ("--syn-dir", place.syn, "--labels", place / "labels", "--licence", "mit", "--output-dir", place / "hub")
    assert place.start("validate.share.__main__", *words).code == 0
    before = snapshot(place / "hub")

    found = loaded(place, place / "hub")
    assert found["splits"] == ["train"] and found["names"] == order != sorted(order)
    pixels = {(name, hexadecimal) for name, label, hexadecimal in found["rows"] if order[label] == name}
    assert pixels == {
        (path.parent.name, np.asarray(Image.open(path)).tobytes().hex()) for path in place.syn.glob("*/*.png")
    }
    assert snapshot(place / "hub") == before

    for number, source in enumerate(("saved", "saved.parquet", "hub")):
        outcome = back(place, source, output=f"back{number}")
        assert outcome.code == 0 and f"{len(found['rows'])} images of 3 classes" in outcome.out, outcome.err
        assert images(place / f"back{number}") == images(place.syn)
    line = dict(load_labels=place / "hub/labels", teacher_path=None, student_arch="conv3")
    assert "seed 0 is complete" in place.works("validate", syn_dir=place / "back2", method="x", **line), "and weighted"
    assert "seed 0 is complete" not in place.works("validate", syn_dir=place / "back0", method="x", **line)

    next((place / "hub/train").glob("*/*.png")).unlink()
    outcome = back(place, "hub", output="fewer")
    assert outcome.code == 0 and "hub/train/manifest.json: is left out, with" in outcome.out, outcome.err
    assert not (place / "fewer/manifest.json").exists()


@pytest.fixture
def others(place):
    """Somebody's folder of one class and a JPEG, saved by the library."""
    folder = place / "others"
    (folder / "train" / "only").mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(folder / "train/only/x.jpg")
    (folder / "README.md").write_text(CARD)
    loaded(place, folder)
    return place


@pytest.mark.slow
def test_sets_of_others_and_what_is_refused(others):
    place = others
    assert back(place, "saved").code == 0
    assert images(place / "back") == {"only/x.jpg": (place / "others/train/only/x.jpg").read_bytes()}
    (place / "bad.parquet").write_bytes(b"nothing")
    refusals = [
        ("@saved --split test @output", "no split 'test'; give --split: train"),
        ("@saved/train --split test @output", "saved/train: has no split 'test'; give --split: train"),
        ("@saved --label class @output", "no column 'class'; give --image and --label, of image, label"),
        ("@saved --image label @output", "'label' holds no images"),
        ("@bad.parquet @output", "bad.parquet: cannot be read"),
        ("@nothing @output", "no such folder"),
        ("@val @saved", "not empty"),
        ("@saved @saved/inside", "would mix with the input"),
    ]
    before = snapshot(place.root)
    lines = [[str(place / word[1:]) if word[0] == "@" else word for word in line.split()] for line, _ in refusals]
    outcome = start(place, "-c", SEVERAL, json.dumps(lines))
    said = outcome.err.splitlines()
    assert len(said) == 2 * len(refusals), outcome.err
    for error, code, (_, told) in zip(said[::2], said[1::2], refusals):
        assert error.startswith("error: ") and told in error and code == "exit code 2"
    assert snapshot(place.root) == before


# Saves sets of one odd row, the second one, by their names in the folder.
ODD = """
import io, sys
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
def as_bytes(kind):
    file = io.BytesIO()
    Pillow.new("RGB", (8, 8), (9, 8, 7)).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}
good, classes = as_bytes("PNG"), ClassLabel(names=["ant", "moth"])
for name, label, image, value in (
    ("unlabelled", classes, good, -1),
    ("none", classes, good, None),
    ("none-named", Value("string"), good, None),
    ("no-image", classes, None, 1),
    ("foreign", classes, as_bytes("ICNS"), 1),
    ("jpeg2000", classes, as_bytes("JPEG2000"), 1),
):
    rows = {"image": [good, image], "label": ["ant" if label != classes else 0, value]}
    found = Dataset.from_dict(rows, features=Features({"image": Image(), "label": label}))
    found.save_to_disk(sys.argv[1] + "/" + name)
"""


@pytest.mark.slow
def test_rows_without_a_class_or_an_image(tmp_path):
    """One line that says which row; nothing is left."""
    place = tmp_path
    assert (made := start(place, "-c", ODD, place)).code == 0, made.err
    told = {
        "unlabelled": "row 1 (the first is 0) has no class, its 'label' is -1",
        "none": "row 1 (the first is 0) has no class",
        "none-named": "row 1 (the first is 0) has no class",
        "no-image": "row 1 (the first is 0) has no image in 'image'",
        "foreign": "row 1 (the first is 0) has an image of the format ICNS",
    }
    lines = [[str(place / name), str(place / "output")] for name in told]
    outcome = start(place, "-c", SEVERAL, json.dumps([*lines, [str(place / "jpeg2000"), str(place / "good")]]))
    said = outcome.err.splitlines()
    assert len(said) == 2 * len(told), outcome.err
    for error, code, text in zip(said[::2], said[1::2], told.values()):
        assert error.startswith("error: ") and text in error and code == "exit code 2"
    assert not (place / "output").exists()
    assert tree(place / "good") == ["ant", "ant/0000.png", "moth", "moth/0000.jp2"]


def test_no_file_takes_the_place_of_another_one(tmp_path):
    """Its name is a free one, also where other files are called as a numbered one is."""
    names = ["0002_a.png", "a.png", "a.png", "a.png"]
    from_datasets.write((("ant", name, str(row).encode()) for row, name in enumerate(names)), tmp_path)
    assert sorted(path.read_bytes() for path in tmp_path.glob("ant/*.png")) == [b"0", b"1", b"2", b"3"]
    assert [(tmp_path / "ant" / name).read_bytes() for name in names[:2]] == [b"0", b"1"], "names that they had"


@pytest.mark.parametrize("said, told", [("train", ""), ("train[:50%]", ""), (None, "--split train is not used")])
def test_a_split_that_was_saved_by_itself(tmp_path, capsys, said, told):
    """It is taken where it is the one that is asked for, or nobody says which one it is; never as another one."""
    (tmp_path / "state.json").touch()
    split = SimpleNamespace(split=said)
    library = SimpleNamespace(load_from_disk=lambda path: split)

    def read(name):
        return from_datasets.read(library, SimpleNamespace(folder=str(tmp_path), split=name), "")

    assert read(None) is split and capsys.readouterr().out == ""
    assert read("train") is split and (told in (out := capsys.readouterr().out)) and bool(out) == bool(told)
    if said:
        with pytest.raises(UserError, match="has no split 'test'; give --split: train$"):
            read("test")
