"""The synthesis loss, its gradient and its statistics, against plain float64 autograd."""
import copy
import shutil

import pytest
import torch
from torch import nn

from helpers import scrambled, small_net
from recover.engine import Settings, make_objective
from recover.objective import MatchedBatchNorm, Objective, _MatchedNorm, channel_moments
from utils import models
from utils.runtime import Runtime

R_BN, FIRST = 0.05, 10.0
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


def resnet():
    torch.manual_seed(3)
    return scrambled(models.build("resnet18", 5, 32, "imagenet"))


NETS = {"conv": (small_net, 8, 4), "resnet18": (resnet, 32, 5)}


def case(name):
    build, size, classes = NETS[name]
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    return build(), images, torch.randint(classes, (3,), generator=generator)


def reference(model, images, labels, r_bn=R_BN, first=FIRST):
    """(loss, gradient with respect to the images), all in float64, statistics by hooks on the BatchNorms' inputs."""
    model, images = copy.deepcopy(model).double().eval(), images.double().clone().requires_grad_()
    distances = []

    def hook(norm, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, var = torch.mean(x, 1), torch.var(x, 1, unbiased=False)
        distances.append((mean - norm.running_mean).pow(2).sum().sqrt() + (var - norm.running_var).pow(2).sum().sqrt())

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(hook)
    probabilities = model(images).log_softmax(1)
    loss = -probabilities[range(len(labels)), labels].mean()
    loss = loss + r_bn * (first * distances[0] + sum(distances[1:]))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def measured(model, images, labels, **options):
    images = images.clone().requires_grad_()
    loss = Objective(model, options.get("r_bn", R_BN), options.get("first", FIRST))(images, labels)
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_loss_and_gradient(name, dtype, tolerance):
    model, images, labels = case(name)
    images = images.to(dtype)
    loss, gradient = reference(model, images, labels)
    found, found_gradient = measured(model.to(dtype), images, labels)
    assert found.shape == () and found_gradient.dtype == dtype
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < tolerance


def test_without_statistics_the_loss_is_cross_entropy():
    model, images, labels = case("conv")
    expected = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels)
    assert measured(model.double(), images, labels, r_bn=0.0)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_first_layer_is_multiplied():
    losses = {}
    for first in 0.0, 1.0, 10.0:
        model, images, labels = case("conv")
        losses[first] = measured(model.double(), images, labels, first=first)[0].item()
    x = case("conv")[0][0].double()(images).transpose(0, 1).flatten(1)  # what the first BatchNorm gets
    norm = case("conv")[0][1].double()
    distance = (x.mean(1) - norm.running_mean).norm() + (x.var(1, correction=0) - norm.running_var).norm()
    assert losses[10.0] - losses[1.0] == pytest.approx(9 * R_BN * distance.item(), rel=1e-5)
    assert losses[1.0] - losses[0.0] == pytest.approx(R_BN * distance.item(), rel=1e-5)


def test_a_network_without_batchnorm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    _, images, labels = case("conv")
    expected = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels)
    assert measured(model.double(), images, labels)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_teacher_stays_as_it_is():
    model, images, labels = case("conv")
    model.train().requires_grad_(True)
    objective = Objective(model, R_BN, FIRST)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    images = images.float().requires_grad_()
    first = objective(images, labels)
    first.backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in objective.parameters())
    assert all(p.grad is None for p in objective.parameters())
    assert len(before) >= 12 and all(torch.equal(t, before[name]) for name, t in objective.state_dict().items())
    assert objective(images, labels).item() == first.item()


def moments64(x):
    x = x.double().transpose(0, 1).flatten(1)
    return x.mean(1), x.var(1, correction=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_matched_norm(layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator).contiguous(memory_format=layout).requires_grad_()
    scale, shift = torch.rand(2, 3, dtype=torch.float64, generator=generator)
    # All three results at once, so that a gradient that one of them lacks cannot hide.
    assert torch.autograd.gradcheck(lambda x: _MatchedNorm.apply(x, scale, shift), (x,), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_are_reduced_in_fp32(dtype, layout):
    # In bf16 a sum of 16384 values near 1 would be off by percents, and in fp16 it would overflow with the squares.
    spread = torch.tensor([0.5, 3.0, 20.0]).view(3, 1, 1)
    x = spread * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) + 1
    x = x.to(dtype).contiguous(memory_format=layout)
    before = x.clone()
    mean, var = channel_moments(x)
    expected_mean, expected_var = moments64(x)
    assert mean.dtype == var.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_a_mean_far_from_zero_does_not_drown_the_variance():
    # A sum of squares less the squared mean would leave nothing of it in fp32.
    x = 1000 + 0.1 * torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(channel_moments(x)[1].double(), moments64(x)[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("affine", [True, False])
def test_it_normalises_as_the_batchnorm_that_it_replaces(affine):
    norm = nn.BatchNorm2d(3, eps=0.3, affine=affine).eval()
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(MatchedBatchNorm(norm)(x), norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision, tolerance, gradient_tolerance", [("fp32", 2e-5, 2e-5), ("bf16", 5e-3, 0.2)])
@pytest.mark.parametrize("compile", ["off", pytest.param("on", marks=needs_compiler)])
def test_the_fast_step_against_float64(precision, tolerance, gradient_tolerance, compile):
    runtime = Runtime(torch.device("cpu"), precision, compile)
    settings = Settings(iterations=9, round_iterations=3, lr=0.25, r_bn=R_BN, first_bn_multiplier=FIRST, jitter=0,
                        curriculum="cosine", milestone=1.0, min_crop=0.08)
    model, images, labels = case("conv")
    loss, gradient = reference(model, images, labels)
    objective = make_objective(model, settings, runtime, steps=1)
    images = images.float().contiguous(memory_format=torch.channels_last).requires_grad_()
    with runtime.autocast():
        found = objective(images, labels)
    found_gradient = torch.autograd.grad(found, images)[0]
    assert found.dtype == torch.float32 and found_gradient.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < gradient_tolerance


@needs_compiler
def test_one_compilation_serves_every_round():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runtime = Runtime(torch.device("cpu"), "fp32", "on")
    model, images, labels = case("conv")
    objective = runtime.compiled(runtime.frozen(Objective(model, R_BN, FIRST)), steps=1)
    for count in (2, 3, 2, 5):
        batch = images.float().repeat(2, 1, 1, 1)[:count].contiguous(memory_format=torch.channels_last).requires_grad_()
        found = objective(batch, labels.repeat(2)[:count])
        loss, gradient = reference(case("conv")[0], batch.detach(), labels.repeat(2)[:count])
        assert found.item() == pytest.approx(loss.item(), rel=2e-5)
        assert relative(torch.autograd.grad(found, batch)[0], gradient) < 2e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "neither a graph break nor a recompilation"


def test_bf16_does_not_change_the_result():
    model, images, labels = case("resnet18")
    loss, gradient = reference(model, images, labels)
    images = images.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = Objective(model, R_BN, FIRST)(images, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=5e-3)
    found_gradient = torch.autograd.grad(found, images)[0].double()
    assert nn.functional.cosine_similarity(found_gradient.flatten(), gradient.flatten(), dim=0) > 0.97
    assert found_gradient.norm().item() == pytest.approx(gradient.norm().item(), rel=0.05)
