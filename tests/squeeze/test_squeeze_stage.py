"""squeeze as its users meet it: a command line in, a teacher out."""

import re
import shutil

import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, PIXELS, STD, Place, snapshot
from helpers import CPU, Interrupted
from plain_teacher import logits
from refusals import refused
from utils.data import image_folder
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.fit.evaluate import accuracy
from utils.nets.teacher import load_teacher
from utils.run.resume import State
from validate.report import collect, origins


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def done(stock, tmp_path_factory):
    """A place where squeeze has run; what it printed is `said`."""
    place = Place(tmp_path_factory.mktemp("squeezed") / "bugs")
    for name in ("train", "val"):
        shutil.copytree(stock / name, place / name)
    place.said = place.works("squeeze")
    return place


def test_squeeze_writes_weights_and_every_fact_about_them(done):
    checkpoint = torch.load(done / "squeezed.pth", weights_only=True)
    expected = {
        "arch": "conv3",
        "stem": "cifar",
        "num_classes": 3,
        "classes": list(CLASSES),
        "input_size": INPUT,
        "mean": list(MEAN),
        "std": list(STD),
        "epochs": 4,
    }
    assert {name: checkpoint[name] for name in expected} == expected
    assert checkpoint["seconds"] > 0 and checkpoint["versions"]["torch"] in torch.__version__


def test_the_top1_that_squeeze_prints_is_that_of_its_weights(done):
    files = sorted(done.val.glob("*/*.png"))
    guesses = logits(done / "squeezed.pth", files).argmax(1).tolist()
    top1 = 100 * sum(CLASSES[guess] == file.parent.name for guess, file in zip(guesses, files)) / len(files)
    assert 40 < top1 < 100  # the teacher learned something, and the test set tells rates apart
    assert f"top-1 {top1:.2f} %" in done.said
    assert torch.load(done / "squeezed.pth", weights_only=True)["top1"] == pytest.approx(top1, abs=0.01)


def test_nothing_hidden_is_left(done):
    assert not list(done.root.rglob(".*"))


def test_the_same_command_again_trains_nothing(done):
    before = snapshot(done.root)
    top1 = torch.load(done / "squeezed.pth", weights_only=True)["top1"]
    said = done.works("squeeze")
    assert "complete" in said and f"{top1:.2f}" in said
    assert snapshot(done.root) == before


def test_the_seed_alone_decides_the_weights(done, place):
    place.works("squeeze", output=place / "same.pth")
    place.works("squeeze", output=place / "other.pth", seed=1)
    first, same, other = (weights(path) for path in (done / "squeezed.pth", place / "same.pth", place / "other.pth"))
    assert first.keys() == same.keys() and all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_squeeze_keeps_the_network_of_the_best_epoch(place):
    """Of those that were measured; the first of them where several are as good."""
    place.works("squeeze", epochs=6, evaluations=6, lr=0.5)
    best, last = (torch.load(place / name, weights_only=True) for name in ("squeezed_best.pth", "squeezed.pth"))
    assert best["top1"] >= last["top1"] and best["settings"] == last["settings"] and best["arch"] == "conv3"
    teacher = load_teacher(None, place / "squeezed_best.pth")
    test = EvalBatches(ImageFolder(place.val, "--val-dir"), INPUT)
    top1, _ = accuracy(teacher.network, test, teacher.geometry, CPU)
    assert round(top1, 2) == best["top1"]


def test_the_best_epochs_network_says_which_epoch_it_is_of(place, monkeypatch):
    """As its card does; and it is no measure of what the whole data set gives, which the last epoch's is."""
    measured = iter([50.0, 80.0, 70.0, 60.0])
    monkeypatch.setattr("utils.fit.loop.accuracy", lambda *_: (next(measured), 100.0))
    place.works("squeeze", evaluations=4, keep_epochs=(1, 2, 3))
    monkeypatch.undo()
    best = torch.load(place / "squeezed_best.pth", weights_only=True)
    assert (best["epochs"], best["top1"], best["settings"]["epochs"]) == (2, 80, 4)
    second = weights(place / "squeezed.epoch2.pth")
    assert all(torch.equal(best["model"][name], second[name]) for name in second)
    assert torch.load(place / "squeezed.pth", weights_only=True)["epochs"] == 4

    words = "--licence", "mit", "--output-dir", place / "hub", "--teacher-path", place / "squeezed_best.pth"
    assert place.start("squeeze.share", *words).code == 0
    assert "| epochs | 2 |" in (place / "hub/README.md").read_text()
    for name, top1 in ("squeezed_best", None), ("squeezed", 60):
        place.works("validate", epochs=1, teacher_path=place / f"{name}.pth", output_dir=place / name)
        [entry] = collect.read([place / name])
        assert origins.teacher_top1(entry) == top1


def test_the_best_epochs_network_is_this_runs_where_none_is_better_than_nothing(place, monkeypatch):
    (place / "squeezed_best.pth").write_bytes(place.teacher.read_bytes())
    monkeypatch.setattr("utils.fit.loop.accuracy", lambda *_: (0.0, 100.0))
    place.works("squeeze", evaluations=2, overwrite=True)
    best, last = (torch.load(place / name, weights_only=True) for name in ("squeezed_best.pth", "squeezed.pth"))
    assert (best["epochs"], best["top1"], best["settings"]) == (2, 0, last["settings"])


def test_squeeze_leaves_a_file_alone_that_is_called_as_its_best_would_be(place):
    (place / "squeezed_best.pth").write_bytes(place.teacher.read_bytes())
    outcome = place.run("squeeze", epochs=1)
    assert outcome.code == 2 and "squeezed_best.pth holds another run" in outcome.err
    assert (place / "squeezed_best.pth").read_bytes() == place.teacher.read_bytes()
    assert not (place / "squeezed.pth").exists()


def test_a_small_set_has_its_own_size_and_the_stem_follows_from_the_size(place):
    place.works("squeeze", epochs=1, input_size=None)
    facts = torch.load(place / "squeezed.pth", weights_only=True)
    assert (facts["input_size"], facts["stem"]) == (PIXELS, "cifar")
    place.works("squeeze", epochs=1, input_size=65, arch="mobilenet_v2", output=place / "big.pth")
    assert torch.load(place / "big.pth", weights_only=True)["stem"] == "imagenet"


@pytest.mark.parametrize(
    "changed",
    [dict(input_size=PIXELS), dict(stem="imagenet"), dict(mean=(0.1, 0.1, 0.1)), dict(std=(0.5, 0.5, 0.5))],
    ids=lambda changed: next(iter(changed)),
)
def test_a_teacher_of_other_settings_is_not_passed_off_as_the_one_asked_for(place, changed):
    place.works("squeeze", epochs=1)
    before = snapshot(place.root)
    outcome = place.run("squeeze", epochs=1, **changed)
    assert outcome.code == 2 and str(place / "squeezed.pth") in outcome.err and next(iter(changed)) in outcome.err
    assert snapshot(place.root) == before
    place.works("squeeze", epochs=1, **changed, overwrite=True)


@pytest.mark.parametrize("folder, named", [("train", " images: "), ("val", "test_images: ")])
def test_images_that_were_replaced_in_place_are_other_images(place, folder, named):
    """Of the same names and the same number of bytes."""
    for path in sorted((place / folder).glob("*/*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    place.works("squeeze", epochs=1)
    path = sorted((place / folder).glob("*/*.bmp"))[0]
    size = path.stat().st_size
    Image.new("RGB", (PIXELS, PIXELS), (1, 2, 3)).save(path)
    assert path.stat().st_size == size
    assert named in refused(place, "squeeze", place / "squeezed.pth", "--overwrite", epochs=1).replace("(", " ")
    place.works("squeeze", epochs=1, overwrite=True)
    assert "complete" in place.works("squeeze", epochs=1)


@pytest.fixture
def limited(monkeypatch):
    """A function: from now on images are too many to read them all at each start."""
    return lambda: monkeypatch.setattr(image_folder, "HASHED_BYTES", 1000)


def test_many_images_are_not_read_to_see_that_a_teacher_is_complete(place, limited, monkeypatch):
    limited()
    place.works("squeeze", epochs=1)
    monkeypatch.setattr(ImageFolder, "hashed", lambda *_: pytest.fail("read all images"))
    assert "complete" in place.works("squeeze", epochs=1)
    path = sorted(place.train.glob("*/*.png"))[0]
    path.write_bytes(path.read_bytes() + b"more")
    monkeypatch.undo()
    limited()
    refused(place, "squeeze", "(images: ", "--overwrite", epochs=1)


def test_a_teacher_of_many_images_whose_bytes_an_earlier_version_read_is_complete(place, limited):
    place.works("squeeze", epochs=1)
    limited()
    assert "complete" in place.works("squeeze", epochs=1)
    path = sorted(place.val.glob("*/*.png"))[0]
    path.write_bytes(path.read_bytes() + b"more")
    refused(place, "squeeze", "test_images: ", "--overwrite", epochs=1)


def test_an_interrupted_training_of_many_images_whose_bytes_an_earlier_version_read_goes_on(
    place, limited, monkeypatch
):
    def interrupted(state, content):
        state.save(content())
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(State, "save_if_due", interrupted)
        with pytest.raises(Interrupted):
            place.run("squeeze", epochs=2)
    limited()
    place.works("squeeze", epochs=2)


def test_another_test_folder_is_another_run_and_a_copy_of_it_is_not(place):
    place.works("squeeze", epochs=1)
    shutil.copytree(place.val, place / "copy")
    assert "complete" in place.works("squeeze", epochs=1, val_dir=place / "copy")
    refused(place, "squeeze", "test_images: ", epochs=1, val_dir=place.train)


def test_help_names_every_flag_of_the_design(stock):
    flags = """--dataset --seed --batch-size --workers --device --precision --compile --stem --train-dir --val-dir
        --arch --output --epochs --lr"""
    outcome = stock.run("squeeze", help=True)
    assert outcome.code == 0
    assert set(flags.split()) <= set(re.findall(r"--[a-z-]+", outcome.out))


def test_a_file_that_could_not_be_read_is_not_written(place):
    refused(place, "squeeze", "name a .pth file", output=place / "teacher.safetensors")
