"""torchvision's pretrained weights: the teacher computes what torchvision's pretrained network does."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torchvision.models import WeightsEnum

from helpers import scrambled
from utils.data.geometry import GeometryFlags
from utils.nets import models
from utils.nets.teacher import load_teacher

AUXILIARY = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


@pytest.fixture
def published(monkeypatch):
    """As if torchvision's files were these: the network, random, and what is in its file."""

    def made(arch):
        torch.manual_seed(0)
        network = scrambled(torchvision.models.get_model(arch, **AUXILIARY.get(arch, {})))
        weights = network.state_dict()
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: weights)
        return torchvision.models.get_model(arch, weights="IMAGENET1K_V1").eval(), weights

    return made


def answers(network):
    with torch.no_grad():
        return network(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["googlenet", "inception_v3", "resnet18"])
def test_a_teacher_without_a_path(published, arch):
    expected, _ = published(arch)
    teacher = load_teacher(arch, None, GeometryFlags(dataset="imagenet1k"))
    assert torch.equal(answers(teacher.network), answers(expected))
    assert getattr(expected, "transform_input", None) is (None if arch == "resnet18" else True)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_the_published_file(published, arch, tmp_path, monkeypatch):
    """Known by the digest in its name; any other file was trained without, unless it says so."""
    expected, weights = published(arch)
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("aux", "AuxLogits"))}
    torch.save(weights, tmp_path / "weights.pth")
    without = load_teacher(arch, str(tmp_path / "weights.pth"), GeometryFlags(input_size=224, stem="imagenet"))
    assert not without.network.transform_input and "transform_input False" in " ".join(without.assumed)
    assert not torch.allclose(answers(without.network), answers(expected), rtol=1e-3)

    torch.save({"model": weights, "transform_input": True}, tmp_path / "says.pth")
    says = load_teacher(arch, str(tmp_path / "says.pth"), GeometryFlags(input_size=224, stem="imagenet"))
    assert torch.equal(answers(says.network), answers(expected))

    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    own = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
    named = SimpleNamespace(url=f"https://x/a-{digest[:8]}.pth", transforms=own.transforms)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: [named])
    known = load_teacher(arch, str(tmp_path / "weights.pth"), GeometryFlags(input_size=224, stem="imagenet"))
    assert torch.equal(answers(known.network), answers(expected))


class Small(torch.nn.Module):
    """In place of a network of hundreds of megabytes."""

    def __init__(self):
        super().__init__()
        self.classifier = torch.nn.Linear(1, 1000)


@pytest.mark.parametrize("arch, half", [("efficientnet_v2_l", True), ("resnet18", False)])
def test_the_normalisation_is_that_of_the_weights(monkeypatch, tmp_path, arch, half):
    """EfficientNetV2-L was trained on pixels from -1 to 1, without a path and as the published file."""
    monkeypatch.setattr(models, "build", lambda *_, **__: Small())
    monkeypatch.setattr(models, "read_num_classes", lambda *_: 1000)
    expected = ((0.5,) * 3, (0.5,) * 3) if half else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    fetched = load_teacher(arch, None, GeometryFlags(dataset="imagenet1k"))
    assert (fetched.geometry.mean, fetched.geometry.std) == expected

    torch.save(Small().state_dict(), tmp_path / "weights.pth")
    flags = GeometryFlags(input_size=224, stem="imagenet")
    other = load_teacher(arch, str(tmp_path / "weights.pth"), flags)
    assert other.geometry.mean == (0.485, 0.456, 0.406), "somebody's own: the usual one, and a line says so"
    digest = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"].url.rpartition("-")[2].removesuffix(".pth")
    monkeypatch.setattr("utils.nets.teacher.sha256", lambda _: digest + "0" * 56)
    found = load_teacher(arch, str(tmp_path / "weights.pth"), flags)
    assert (found.geometry.mean, found.geometry.std) == expected
