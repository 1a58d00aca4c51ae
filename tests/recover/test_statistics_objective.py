"""Statistics matching: each term, its gradient and its running averages, against a slow loop in float64."""

import copy
import shutil

import pytest
import torch
from torch import nn

from helpers import scrambled
from matching import (
    GEOMETRY,
    NETS,
    OTHER,
    Slow,
    densified,
    example,
    matching,
    relative,
    step,
    write_targets,
)
from recover.objectives.base import combined
from recover.objectives.densification import densification
from recover.objectives.measure import convolution_input
from utils.nets import models
from utils.run.errors import UserError

METHODS = {
    "gvbsm": dict(densification=1.0),
    "edc": dict(class_share=0.5),
    "all": dict(class_share=0.3, densification=0.5, momentum=0.4, first=3.0),
}
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


@pytest.mark.parametrize("side", [4, 2, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_three_steps(tmp_path, name, method, side):
    """Maps that are cut as they are, shrunk to whole patches, and enlarged to one."""
    model = NETS[name]()
    found = write_targets(tmp_path / "t.safetensors", model, side)(GEOMETRY)
    objective, slow = matching(model, found, **METHODS[method]), Slow(model, found, **METHODS[method])
    objective.begin(0)
    images, labels = example()
    images = 0.1 * images  # eigenvalues near one another, or densification is nothing
    for number in range(3):
        loss, gradient = step(objective, images[number], labels, number)
        expected, expected_gradient = slow(images[number], labels)
        assert loss.dtype == torch.float64 and loss.shape == ()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
        assert relative(gradient, expected_gradient) < 1e-6


@pytest.mark.parametrize("name", NETS)
def test_in_fp32(tmp_path, name):
    model = NETS[name]()
    found = write_targets(tmp_path / "t.safetensors", model, 2)(GEOMETRY)
    objective = matching(model, found, dtype=torch.float32, **METHODS["all"])
    slow, (images, labels) = Slow(model, found, **METHODS["all"]), example()
    for number in range(3):
        loss, gradient = step(objective, images[number].float(), labels, number)
        expected, expected_gradient = slow(images[number], labels)
        assert loss.dtype == gradient.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=2e-5)
        assert relative(gradient, expected_gradient) < 1e-4


def test_two_teachers_in_turn_keep_their_own_averages(tmp_path):
    """Each sees every second step, and the images as it normalises them."""
    objectives, slow = [], []
    for number, (name, geometry) in enumerate({"small": GEOMETRY, "odd": OTHER}.items()):
        model = NETS[name]()
        found = write_targets(tmp_path / f"{name}.safetensors", model, 4, seed=number)(geometry)
        objectives.append(matching(model, found, geometry, **METHODS["all"]))
        slow.append(Slow(model, found, geometry, **METHODS["all"]))
    both = combined(objectives, "turn")
    both.begin(0)
    images, labels = example()
    for number in range(6):
        loss, gradient = step(both.at(number), images[number], labels, number)
        expected, expected_gradient = slow[number % 2](images[number], labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
        assert relative(gradient, expected_gradient) < 1e-6
    assert len(both.state()) == 2


@pytest.mark.parametrize("name", NETS)
def test_dropped_convolutions_have_no_terms_and_their_averages_stand_still(tmp_path, name):
    model = NETS[name]()
    found = write_targets(tmp_path / "t.safetensors", model, 2)(GEOMETRY)
    objective, slow = matching(model, found, drop=0.4), Slow(model, found)
    objective.begin(3)
    images, labels = example()
    names = [layer.name for layer in found.layers]
    seen = set()
    for number in range(6):
        dropped = [layer for layer, kept in zip(names, objective.kept[number].tolist()) if not kept]
        seen |= set(dropped)
        loss, gradient = step(objective, images[number], labels, number)
        expected, expected_gradient = slow(images[number], labels, dropped=dropped)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-7)
        assert relative(gradient, expected_gradient) < 1e-6
    assert seen, "some were dropped"
    assert all(isinstance(dict(model.named_modules())[layer], nn.Conv2d) for layer in seen)


def test_what_is_dropped_is_drawn_by_unit_and_teacher(tmp_path):
    model = NETS["small"]()
    found = write_targets(tmp_path / "t.safetensors", model, 4)(GEOMETRY)
    objectives = [matching(model, found, drop=0.4, iterations=2000) for _ in range(2)]
    both = combined(objectives, "turn")
    drawn = []
    for unit in (0, 1, 0):
        both.begin(7, "recover", unit)
        drawn.append([objective.kept.clone() for objective in objectives])
    assert torch.equal(drawn[0][0], drawn[2][0]) and torch.equal(drawn[0][1], drawn[2][1])
    assert not torch.equal(drawn[0][0], drawn[1][0]) and not torch.equal(drawn[0][0], drawn[0][1])
    convolutions = [k for k, layer in enumerate(found.layers) if layer.kind == "convolution"]
    for kept in drawn[0]:
        for k in range(len(found.layers)):
            share = kept[:, k].double().mean().item()
            # Six standard deviations of the mean of 2000 draws.
            assert abs(share - 0.6) < 0.066 if k in convolutions else share == 1


def test_networks_say_what_they_said(tmp_path):
    for name in NETS:
        model, images = NETS[name](), example()[0][0]
        found = write_targets(tmp_path / f"{name}.safetensors", model, 4)(GEOMETRY)
        expected = copy.deepcopy(model).double()(images)
        torch.testing.assert_close(matching(model, found).networks()[0](images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "timm/efficientnet_b0"])
def test_networks_of_the_libraries(tmp_path, arch):
    """Shared inputs, depthwise convolutions, squeezed maps of one pixel, layers that carry activations."""
    torch.manual_seed(4)
    model = scrambled(models.build(arch, 4, 8, "cifar"))
    found = write_targets(tmp_path / "t.safetensors", model, 4)(GEOMETRY)
    objective, slow = matching(model, found, class_share=0.5), Slow(model, found, class_share=0.5)
    images, labels = example(3)
    for number in range(2):
        loss, gradient = step(objective, images[number], labels, number)
        expected, expected_gradient = slow(images[number], labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert relative(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [2, 4, 3, 8])
def test_gradient_of_what_measures_a_convolution(side, layout):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: convolution_input(x, side), (x,), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("size, scale", [(32, 0.02), (8, 0.05), (40, 0.04), (64, 0.1), (32, 1.0)])
def test_densification(size, scale):
    images = scale * torch.randn(13, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0, 3, 1, 1, 2])
    images.requires_grad_()
    found, expected = densification(images, labels), densified(images, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-8)
    gradients = [torch.autograd.grad(value, images)[0] for value in (found, expected)]
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm() + 1e-8
    assert gradients[0][9].abs().max() < 1e-9, "an image alone in its class"


def test_images_alone_in_their_classes_add_nothing():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    value = densification(images, torch.arange(4))
    assert abs(value.item()) < 1e-6 and torch.autograd.grad(value, images)[0].abs().max() == 0


def test_another_teachers_file(tmp_path):
    model = NETS["small"]()
    other = write_targets(tmp_path / "t.safetensors", model, 4, sha256="f" * 64)(GEOMETRY)
    with pytest.raises(UserError, match="t.safetensors: was collected with another teacher .*ffff.*0000"):
        matching(model, other)
    plain = write_targets(tmp_path / "t.safetensors", model, 4, per_class=False)(GEOMETRY)
    matching(model, plain)
    with pytest.raises(UserError, match="collected without --per-class; python -m squeeze.statistics --per-class"):
        matching(model, plain, class_share=0.5)
    moved = write_targets(tmp_path / "t.safetensors", model, 4)(OTHER)
    with pytest.raises(UserError, match="was collected with mean"):
        matching(model, moved)
