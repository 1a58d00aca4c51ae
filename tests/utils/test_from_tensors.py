"""Sets of tensors as other projects publish them, made into ImageFolders."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import ROOT, snapshot
from helpers import tree

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])


def normalised():
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return torch.from_numpy((PIXELS / 255 - mean) / std).float()


def check(folder, names=("0", "1", "2")):
    assert tree(folder) == sorted([*names, *(f"{name}/{number:04d}.png" for name in names for number in range(2))])
    for label, name in enumerate(names):
        for number, index in enumerate(np.flatnonzero(LABELS == label)):
            found = np.asarray(Image.open(folder / name / f"{number:04d}.png"))
            assert np.array_equal(found, PIXELS[index].transpose(1, 2, 0))


def save(path, kind):
    images, labels = torch.from_numpy(PIXELS), torch.from_numpy(LABELS)
    if kind == "dict":
        torch.save({"images": images / 255, "labels": labels}, path)
    elif kind == "tuple":
        torch.save((images, labels), path)
    elif kind == "scores":
        torch.save({"data": images.float(), "soft": torch.nn.functional.one_hot(labels).float() + 0.1}, path)
    elif kind == "half":
        torch.save({"x": (images / 255).bfloat16().float(), "y": labels}, path)
    elif kind == "npz":
        np.savez(path, images=PIXELS.transpose(0, 2, 3, 1), labels=LABELS)
    else:
        save_file({"image_syn": images, "label_syn": labels}, path)


@pytest.mark.parametrize(
    "name, kind", [("s.pt", "dict"), ("s.pt", "tuple"), ("s.pth", "scores"), ("s.npz", "npz"), ("s.safetensors", "st")]
)
def test_sets_of_many_kinds(place, name, kind):
    save(place / name, kind)
    outcome = place.start("utils.from_tensors", place / name, place / "set")
    assert outcome.code == 0, outcome.err
    check(place / "set")


def test_normalised_images_need_the_normalisation(place):
    torch.save({"images": normalised(), "labels": torch.from_numpy(LABELS)}, place / "s.pt")
    outcome = place.start("utils.from_tensors", place / "s.pt", place / "set")
    assert outcome.code == 2 and "--mean and --std" in outcome.err and not (place / "set").exists()
    large = [[255 * value for value in values] for values in (MEAN, STD)]
    outcome = place.start("utils.from_tensors", place / "s.pt", place / "set", "--mean", *large[0], "--std", *large[1])
    assert outcome.code == 2 and "divided by 255" in outcome.err and not (place / "set").exists()
    words = ["--mean", *MEAN, "--std", *STD]
    assert place.start("utils.from_tensors", place / "s.pt", place / "set", *words).code == 0
    check(place / "set")


def test_labels_and_class_names_in_files_of_their_own(place):
    np.save(place / "images.npy", PIXELS)
    torch.save(torch.from_numpy(LABELS), place / "labels_best.pt")
    (place / "names.txt").write_text("ant\nmoth\nzebra\n")
    line = ["utils.from_tensors", place / "images.npy", place / "set"]
    outcome = place.start(*line)
    assert outcome.code == 2 and "--labels" in outcome.err
    outcome = place.start(*line, "--labels", place / "labels_best.pt", "--classes", place / "names.txt")
    assert outcome.code == 0, outcome.err
    check(place / "set", ("ant", "moth", "zebra"))
    outcome = place.start(*line, "--labels", place / "labels_best.pt")
    assert outcome.code == 2 and "not empty" in outcome.err


def test_class_names_with_a_byte_order_mark(place):
    save(place / "s.pt", "dict")
    (place / "names.txt").write_text("ant\nmoth\nzebra\n", encoding="utf-8-sig")
    outcome = place.start("utils.from_tensors", place / "s.pt", place / "set", "--classes", place / "names.txt")
    assert outcome.code == 0, outcome.err
    check(place / "set", ("ant", "moth", "zebra"))


def test_a_line_without_a_name_names_no_class(place):
    """As of a teacher's classes: the k-th line is the k-th class's."""
    save(place / "s.pt", "dict")
    (place / "names.txt").write_text("ant\n\nmoth\nzebra\n")
    outcome = place.start("utils.from_tensors", place / "s.pt", place / "set", "--classes", place / "names.txt")
    assert outcome.code == 2 and "names.txt: has an empty line" in outcome.err and not (place / "set").exists()


@pytest.mark.parametrize("name", [".b", "..", "lost+found", "a/b", "a\0b"])
def test_a_name_that_no_class_folder_can_have(place, name):
    """Hidden folders are no classes, and others lie elsewhere."""
    save(place / "s.pt", "dict")
    (place / "names.txt").write_text(f"ant\n{name}\nzebra\n")
    before = snapshot(place.root)
    outcome = place.start("utils.from_tensors", place / "s.pt", place / "set", "--classes", place / "names.txt")
    assert outcome.code == 2 and f"names.txt: class '{name}' can be no folder" in outcome.err, outcome.err
    assert snapshot(place.root) == before


def test_a_killed_run_leaves_no_set_and_the_same_command_makes_it(place, monkeypatch):
    save(place / "s.pt", "dict")
    fromarray, made = Image.fromarray, []

    def killed(image):
        made.append(image)
        if len(made) == 4:
            raise KeyboardInterrupt
        return fromarray(image)

    monkeypatch.setattr(Image, "fromarray", killed)
    assert place.start("utils.from_tensors", place / "s.pt", place / "set").code != 0
    assert not (place / "set").exists()
    monkeypatch.undo()
    assert place.start("utils.from_tensors", place / "s.pt", place / "set").code == 0
    check(place / "set")


@pytest.mark.parametrize(
    "words, told",
    [
        ("--zca @train", "--zca"),
        ("--dataset cifar10", "--dataset"),
        ("--mean 0 0 0 --std 1 1 1", "--mean and --std"),
        ("--zca-eps 0.2", "--zca-eps goes with --zca"),
        ("--zca @train --dataset cifar10", "give one of them"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(place, words, told):
    """Of bytes, which are neither normalised nor whitened; and without the flag that it goes with."""
    save(place / "s.npz", "npz")
    words = [place / word[1:] if word[0] == "@" else word for word in words.split()]
    outcome = place.start("utils.from_tensors", place / "s.npz", place / "set", *words)
    assert outcome.code == 2 and told in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not (place / "set").exists()


def test_what_cannot_be_such_a_set_is_one_line(place):
    (place / "text.pt").write_text("no tensors")
    torch.save({"weights": torch.ones(3, 3)}, place / "other.pt")
    np.savez(place / "short.npz", images=PIXELS, labels=LABELS[:4])
    scores = np.eye(3)[LABELS]
    np.savez(place / "nan.npz", images=PIXELS, labels=np.where(np.arange(6) == 4, np.nan, scores.T).T)
    np.savez(place / "no-scores.npz", images=PIXELS, labels=scores[:, :0])
    np.savez(place / "empty.npz", images=PIXELS[:0], labels=LABELS[:0])
    np.savez(place / "empty-floats.npz", images=PIXELS[:0] / 255, labels=LABELS[:0])
    for name in (
        *("text.pt", "other.pt", "short.npz", "missing.pt"),
        *("nan.npz", "no-scores.npz", "empty.npz", "empty-floats.npz"),
    ):
        outcome = place.start("utils.from_tensors", place / name, place / "set")
        assert outcome.code == 2 and name in outcome.err and outcome.err.count("\n") == 1, outcome.err
        assert not (place / "set").exists()


@pytest.mark.slow
def test_as_a_command(tmp_path):
    save(tmp_path / "s.npz", "npz")
    command = [sys.executable, "-m", "utils.from_tensors", tmp_path / "s.npz", tmp_path / "set"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    check(tmp_path / "set")
