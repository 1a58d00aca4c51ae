"""Checkpoints that say anything, and damaged ones: a teacher that works, or one line."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CLASSES, INPUT, MEAN, STD
from fuzzing import JSON, altered, damaged, fuzzed, refused_or
from utils.nets.teacher import load_teacher

FACTS = JSON | st.sampled_from(
    [
        *["resnet18", "conv3", "timm/x", "cifar", "../x"],
        *[3, 14, 0, -1],
        *[[0.5, 0.5, 0.5], [0, 0, 0]],
        *[["a", "b", "c"], ["a", "a", "a"]],
        torch.zeros(2),
    ]
)


@pytest.fixture(scope="module")
def content(stock):
    return torch.load(stock.teacher, weights_only=True)


def test_checkpoint_facts_of_anything(stock, content, tmp_path_factory):
    path = tmp_path_factory.mktemp("facts") / "fuzzed.pth"
    facts = {key: value for key, value in content.items() if key not in ("model", "settings", "versions")}

    def load(facts):
        torch.save({"model": content["model"], **facts}, path)
        return load_teacher(None, path)

    geometry = load(facts).geometry
    assert (geometry.input_size, geometry.mean, geometry.std, geometry.classes) == (INPUT, MEAN, STD, CLASSES)

    @settings(fuzzed, max_examples=120)
    @given(altered(facts, FACTS))
    def check(facts):
        teacher = refused_or(lambda: load(facts))
        if isinstance(teacher, str):
            assert str(path) in teacher or "architecture" in teacher
            return
        geometry = teacher.geometry
        assert teacher.network(torch.zeros(1, 3, geometry.input_size, geometry.input_size)).shape == (1, 3)
        assert geometry.classes is None or len(set(geometry.classes)) == 3
        assert len(geometry.mean) == len(geometry.std) == 3 and min(geometry.std) > 0

    check()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_checkpoints(stock, content, tmp_path_factory, suffix):
    path = tmp_path_factory.mktemp("damaged") / f"fuzzed{suffix}"
    if suffix == ".pth":
        whole = stock.teacher.read_bytes()
        path.write_bytes(whole)
    else:
        from safetensors.torch import save

        whole = save(content["model"], {"input_size": "14", "arch": '"conv3"'})
        path.write_bytes(whole)
    teacher = load_teacher(None, path)
    x = torch.randn(2, 3, INPUT, INPUT, generator=torch.Generator().manual_seed(0))
    expected = load_teacher(None, stock.teacher).network(x)
    assert torch.equal(teacher.network(x), expected)

    # The end of a .pth is its table of contents, the beginning of a .safetensors.
    table = slice(-3000, None) if suffix == ".pth" else slice(3000)

    @settings(fuzzed, max_examples=60)
    @given(damaged(whole[table]))
    def check(part):
        path.write_bytes(part)
        found = refused_or(lambda: load_teacher(None, path))
        assert isinstance(found, str) and str(path) in found

    check()
