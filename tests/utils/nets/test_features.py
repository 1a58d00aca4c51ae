"""Penultimate features: what a network's last linear layer sees of an image."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import CPU, gray
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.nets import models
from utils.nets.features import FeatureReader, extractor
from utils.nets.teacher import load_teacher
from utils.run.errors import UserError


def reader(place, batch_size=256):
    teacher = load_teacher(None, place.teacher)
    return FeatureReader(extractor(teacher.network), teacher.geometry, CPU, batch_size)


def test_features_are_what_the_last_layer_sees(place):
    teacher = load_teacher(None, place.teacher)
    folder = ImageFolder(place.train, "--train-dir")
    seen = []
    teacher.network.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for batch, _ in EvalBatches(folder, teacher.geometry.input_size, 5):
        teacher.network(teacher.geometry.normalise(batch, CPU.device))
    expected = torch.cat(seen)

    found = dict(reader(place, 5).by_class(folder, "test"))
    assert list(found) == [0, 1, 2] and [len(features) for features in found.values()] == [7, 7, 7]
    torch.testing.assert_close(torch.cat(list(found.values())), expected, rtol=1e-4, atol=1e-5)


def test_a_class_has_its_features_whatever_else_is_asked_for(place):
    folder = ImageFolder(place.train, "--train-dir")
    found = dict(reader(place).by_class(folder, "test"))
    some = dict(reader(place).by_class(folder, "test", iter([2, 0])))
    assert list(some) == [2, 0] and all(torch.equal(some[label], found[label]) for label in some)


@pytest.mark.parametrize(
    "arch, size, head",
    [
        ("resnet18", 32, "fc"),
        ("timm/vit_tiny_patch16_224", 32, "head"),
        # The mean of two heads' logits, whose features differ in these.
        ("timm/repvit_m1", 32, "head.head_dist.l"),
        ("timm/deit_tiny_distilled_patch16_224", 32, "head_dist"),
        ("timm/crossvit_tiny_240", 240, "head.1"),
    ],
)
def test_features_are_what_the_last_of_the_heads_sees(arch, size, head):
    network, images, seen = models.build(arch, 3, size, "cifar").eval(), torch.randn(2, 3, size, size), []
    hook = network.get_submodule(head).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        network(images)
        hook.remove()
        found = extractor(network)(images)
    assert found.ndim == 2 and torch.equal(found, seen[0])


class Reciprocal(nn.Module):
    """1 / (1 - brightness) as the only feature: infinite for a white image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, images):
        return self.head(1 / (1 - images.mean((2, 3)).amax(1, keepdim=True)))


@pytest.mark.parametrize("precision, advice", [("fp32", "give another teacher"), ("bf16", "give --precision fp32, or")])
def test_an_image_whose_features_are_no_numbers_is_named(tmp_path, precision, advice):
    for name, values in (("a", (0, 51, 102)), ("b", (0, 51, 102, 255, 255))):
        for number, value in enumerate(values):
            gray(tmp_path / name / f"{number}.png", value)
    geometry = Geometry(input_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=2, classes=None, stem="cifar")
    reads = FeatureReader(extractor(Reciprocal()), geometry, replace(CPU, precision=precision), 2, 0)
    classes = reads.by_class(ImageFolder(tmp_path, "--train-dir"), "test")
    assert next(classes)[1].flatten().tolist() == pytest.approx([1, 1 / 0.8, 1 / 0.6], rel=1e-2)
    with pytest.raises(UserError, match=f"b/3.png: the teacher's features .*{precision}.*; {advice}"):
        next(classes)


def test_a_network_without_linear_layer_has_no_features():
    with pytest.raises(UserError, match="linear"):
        extractor(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
