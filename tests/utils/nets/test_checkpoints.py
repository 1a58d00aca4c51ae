"""Checkpoint files: what is written is read again, whoever wrote it, and code in them is never run."""

import os
import pickle

import pytest
import torch

from helpers import CONV3_FACTS, tree
from utils.nets import checkpoints, models
from utils.run.errors import UserError

FACTS = {**CONV3_FACTS, "epochs": 7}


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    return models.build("conv3", 3, 16, "cifar").eval()


def test_what_is_saved_is_read(tmp_path, conv):
    path = tmp_path / "teacher.pth"
    checkpoints.save(path, conv, **FACTS)
    assert tree(tmp_path) == ["teacher.pth"]
    content = checkpoints.read(path)
    weights = content.pop("model")
    assert content == FACTS
    assert all(torch.equal(weights[name], tensor) for name, tensor in conv.state_dict().items())


def test_others_can_read_what_is_saved(tmp_path, conv):
    """PyTorch alone, which runs no code of the file, finds a state_dict and plain values."""
    checkpoints.save(tmp_path / "t.pth", conv, **FACTS)
    stored = torch.load(tmp_path / "t.pth", weights_only=True)
    assert list(stored["model"]) == list(conv.state_dict())
    assert {name: stored[name] for name in FACTS} == FACTS


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_wrappers_and_keys_of_others(tmp_path, conv, prefix, key):
    weights = {prefix + name: tensor for name, tensor in conv.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "t.pth")
    found = checkpoints.read(tmp_path / "t.pth")["model"]
    assert list(found) == list(conv.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in conv.state_dict().items())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("written", ["torch.save", "old torch.save", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, written):
    path, evil = tmp_path / "t.pth", {"model": {"w": Evil(str(tmp_path / "ran"))}}
    if written == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=written == "torch.save")
    with pytest.raises(UserError, match="t.pth"):
        checkpoints.read(path)
    assert not (tmp_path / "ran").exists()
    if written == "torch.save":  # It would have run:
        torch.load(path, weights_only=False)
        assert (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_one_error(tmp_path):
    path = tmp_path / "t.pth"
    contents = [b"", b"hello, I am no checkpoint\n", b"\x80\x02", b"version https://git-lfs.github.com/spec/v1\n"]
    for modern in True, False:
        torch.save({"model": {"w": torch.zeros(3)}}, path, _use_new_zipfile_serialization=modern)
        whole = path.read_bytes()
        contents += [whole[:length] for length in range(1, len(whole) - 1, 7)]
    crashes = {}
    for content in contents:
        path.write_bytes(content)
        try:
            assert "w" in checkpoints.read(path)["model"]  # a cut that only takes what nobody reads
        except UserError as error:
            assert str(path) in str(error)
        except Exception as error:
            crashes[type(error).__name__] = content[:20], len(content)
    assert not crashes


@pytest.mark.parametrize(
    "content, complaint",
    [
        (torch.zeros(3), "Tensor"),
        ([1, 2], "list"),
        ({}, "no weights"),
        ({"model": {}}, "no weights"),
        ({"epoch": 3}, "'epoch' is not a tensor"),
        ({"model": {"w": "text"}}, "'w' is not a tensor"),
    ],
)
def test_a_checkpoint_without_weights(tmp_path, content, complaint):
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(UserError, match=complaint):
        checkpoints.read(tmp_path / "t.pth")


@pytest.mark.parametrize(
    "fact",
    [
        {"std": [0.5, 0.0, 0.5]},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, float("nan"), 0.5]},
        {"input_size": 7},
        {"input_size": 32.0},
        {"num_classes": True},
        {"num_classes": 0},
        {"classes": ["a", "a", "b"]},
        {"classes": "abc"},
        {"stem": "large"},
        {"arch": 18},
        {"top1": "high"},
    ],
    ids=str,
)
def test_facts_that_cannot_be_are_named(tmp_path, conv, fact):
    [name] = fact
    torch.save({"model": conv.state_dict(), **fact}, tmp_path / "t.pth")
    with pytest.raises(UserError, match=f"t.pth: its {name} is not"):
        checkpoints.read(tmp_path / "t.pth")


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoints.read(tmp_path / "t.pth")
    with pytest.raises(UserError):
        checkpoints.read(tmp_path)
