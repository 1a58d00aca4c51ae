"""squeeze --keep-epochs: the networks of early epochs, each a teacher of its own, whatever interrupts the training."""

import os
import shutil
import signal
from unittest import mock

import pytest
import torch

from conftest import CLASSES, snapshot
from plain_teacher import logits
from utils.nets.teacher import load_teacher


def read(path):
    return torch.load(path, weights_only=True)


def top1(path, folder):
    files = sorted(folder.glob("*/*.png"))
    guesses = logits(path, files).argmax(1).tolist()
    return 100 * sum(CLASSES[guess] == file.parent.name for guess, file in zip(guesses, files)) / len(files)


def same(first, second):
    return all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


@pytest.fixture
def kept(place):
    place.said = place.works("squeeze", keep_epochs=(1, 3))
    return place


def test_each_is_a_whole_checkpoint_with_its_own_accuracy(kept):
    last = read(kept / "squeezed.pth")
    assert not (kept / "squeezed.epoch2.pth").exists() and not (kept / "squeezed.epoch4.pth").exists()
    for epoch in 1, 3:
        path = kept / f"squeezed.epoch{epoch}.pth"
        found = read(path)
        assert found["epochs"] == epoch and found["top1"] == pytest.approx(top1(path, kept.val), abs=0.01)
        assert f"epoch {epoch}: top-1 {found['top1']:.2f} %, {path}" in kept.said
        assert {name: found[name] for name in ("arch", "classes", "mean", "std")} == {
            name: last[name] for name in ("arch", "classes", "mean", "std")
        }
        assert not same(found, last) and load_teacher(None, path).top1 == found["top1"]
    assert last["epochs"] == 4


def test_it_is_the_network_that_a_training_of_so_many_epochs_has_under_a_constant_rate(place):
    place.works("squeeze", keep_epochs=2, lr_schedule="constant")
    place.works("squeeze", epochs=2, lr_schedule="constant", output=place / "short.pth")
    assert same(read(place / "squeezed.epoch2.pth"), read(place / "short.pth"))


def test_keeping_changes_nothing_of_the_teacher(kept, place):
    place.works("squeeze", output=place / "plain.pth")
    assert same(read(kept / "squeezed.pth"), read(place / "plain.pth"))


def test_the_next_stages_take_it(kept):
    weak = kept / "squeezed.epoch1.pth"
    kept.works("ranking", teacher_path=weak)
    kept.works("recover", teacher_path=weak, init_dir=kept / "selected")
    kept.works("validate", teacher_path=weak, syn_dir=kept.syn)


def test_the_same_command_again_trains_nothing_and_a_lost_one_is_made_again(kept):
    before = snapshot(kept.root)
    assert "complete" in kept.works("squeeze", keep_epochs=(3, 1, 3))
    assert snapshot(kept.root) == before
    lost = read(kept / "squeezed.epoch1.pth")
    (kept / "squeezed.epoch1.pth").unlink()
    assert "complete" not in kept.works("squeeze", keep_epochs=(1, 3))
    assert same(read(kept / "squeezed.epoch1.pth"), lost)


def test_other_epochs_are_another_run(kept):
    outcome = kept.run("squeeze", keep_epochs=(1, 2))
    assert outcome.code == 2 and "keep_epochs: [1, 3] -> [1, 2]" in outcome.err
    kept.works("squeeze", keep_epochs=(1, 2), overwrite=True)
    assert (kept / "squeezed.epoch2.pth").exists()


def test_a_file_of_that_name_is_left_alone(place):
    shutil.copy(place.teacher, place / "squeezed.epoch3.pth")
    outcome = place.run("squeeze", keep_epochs=3)
    assert outcome.code == 2 and "squeezed.epoch3.pth holds another run" in outcome.err
    assert (place / "squeezed.epoch3.pth").read_bytes() == place.teacher.read_bytes()


@pytest.mark.parametrize("epochs", [(1, 5), 0, 2.5])
def test_epochs_out_of_range_are_refused(place, epochs):
    outcome = place.run("squeeze", keep_epochs=epochs)
    assert outcome.code == 2 and "--keep-epochs" in outcome.err and outcome.err.count("\n") == 1
    assert not list(place.root.glob("squeezed*"))


@pytest.mark.parametrize("step", [4, 10])
def test_after_an_interruption_they_are_those_of_an_unbroken_run(kept, tmp_path, step):
    """21 images in batches of 8 are 3 steps an epoch: stopped in the second epoch, and in the fourth."""
    calls, sgd = [], torch.optim.SGD.step

    def stopping(optimizer, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return sgd(optimizer, *args, **kwargs)

    line = dict(keep_epochs=(1, 3), output=tmp_path / "again" / "squeezed.pth")
    with mock.patch.object(torch.optim.SGD, "step", stopping):
        assert kept.run("squeeze", **line).code != 0
    assert len(calls) == step and not (tmp_path / "again" / "squeezed.pth").exists()
    kept.works("squeeze", **line)
    for name in "squeezed.pth", "squeezed.epoch1.pth", "squeezed.epoch3.pth":
        assert same(read(kept / name), read(tmp_path / "again" / name)), name
        assert read(kept / name)["top1"] == read(tmp_path / "again" / name)["top1"]
