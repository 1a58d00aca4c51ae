"""The BatchNorm objective: its loss, gradient and statistics, against plain float64 autograd."""

import copy
import shutil

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from helpers import CPU, recipe, scrambled, small_net
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Batch, combined
from recover.objectives.batchnorm import BatchNormMatching, MatchedBatchNorm, channel_moments, matched_norm
from utils.data.geometry import Geometry
from utils.nets import models
from utils.nets.teacher import Teacher
from utils.run.device import Runtime
from utils.run.errors import UserError

R_BN, FIRST = 0.05, 10.0
HALF, OTHER, THIRD = (
    Geometry(8, mean, std, num_classes=4, classes=None, stem="cifar")
    for mean, std in (
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.4, 0.45, 0.6), (0.2, 0.25, 0.3)),
        ((0.1, 0.9, 0.5), (0.6, 0.15, 1.0)),
    )
)
SETTINGS = recipe(iterations=9, round_iterations=3, jitter=1)
SCHEDULE = EarlyLate(3, **SETTINGS.schedule)
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


def resnet():
    torch.manual_seed(3)
    return scrambled(models.build("resnet18", 5, 32, "imagenet"))


class Shifted(nn.BatchNorm2d):
    """A BatchNorm of somebody else's, which does more than normalise."""

    def forward(self, x):
        return super().forward(x).tanh() + 0.5


def several_norms():
    """A plain BatchNorm between two that are more: timm's with its activation and drop, and a stranger's."""
    torch.manual_seed(5)
    return scrambled(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            BatchNormAct2d(5, act_layer=nn.SiLU, drop_layer=nn.Softsign, inplace=True),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1),
            Shifted(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        )
    )


NETS = {"conv": (small_net, 8, 4), "resnet18": (resnet, 32, 5), "norms": (several_norms, 8, 4)}


class WithHead(nn.Module):
    """A network whose auxiliary head stands first among its modules, and is called in training alone."""

    def __init__(self, network):
        super().__init__()
        self.head, self.network = nn.Sequential(nn.BatchNorm2d(3), BatchNormAct2d(3)), network

    def forward(self, x):
        return self.network(self.head(x) if self.training else x)


def case(name):
    build, size, classes = NETS[name]
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(3, 3, size, size, generator=generator, dtype=torch.float64)
    return build(), images, torch.randint(classes, (3,), generator=generator)


def channels(values):
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


def reference(model, images, labels, source=HALF, target=HALF):
    """(loss, gradient with respect to the images), all in float64, statistics by hooks on the BatchNorms' inputs.

    The images are normalised as `source` says; the model looks at them as `target` says.
    """
    model, images = copy.deepcopy(model).double().eval(), images.double().clone().requires_grad_()
    distances = []

    def hook(norm, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, var = torch.mean(x, 1), torch.var(x, 1, unbiased=False)
        distances.append((mean - norm.running_mean).pow(2).sum().sqrt() + (var - norm.running_var).pow(2).sum().sqrt())

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(hook)
    pixels = images * channels(source.std) + channels(source.mean)
    logits = model((pixels - channels(target.mean)) / channels(target.std))
    loss = -logits.log_softmax(1)[range(len(labels)), labels].mean()
    loss = loss + R_BN * (FIRST * distances[0] + sum(distances[1:]))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def matching(model, geometry=HALF, r_bn=R_BN, first=FIRST):
    return BatchNormMatching(Teacher(model, "net", geometry, "0" * 64), r_bn, first)


def batch_of(images, labels, geometry=HALF, iteration=0):
    return Batch(images, geometry, labels, torch.arange(len(labels)), torch.tensor(iteration))


def measured(objective, images, labels, geometry=HALF):
    images = images.clone().requires_grad_()
    loss = objective(batch_of(images, labels, geometry))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def test_norms_that_are_not_called_count_for_nothing():
    """Nor does the first one's weight."""
    model, images, labels = case("norms")
    loss, gradient = reference(model, images, labels)
    objective = matching(WithHead(model).double())
    for _ in range(2):
        found, found_gradient = measured(objective, images, labels)
        assert found.item() == pytest.approx(loss.item(), rel=1e-9)
        assert relative(found_gradient, gradient) < 1e-9


def test_a_network_that_calls_no_norm_is_refused():
    model = WithHead(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))).double()
    _, images, labels = case("norms")
    with pytest.raises(UserError, match="--r-bn 0.05: .* has no BatchNorm .* give --r-bn 0"):
        measured(matching(copy.deepcopy(model)), images, labels)
    plain = nn.functional.cross_entropy(model.eval()(images), labels)
    assert measured(matching(model, r_bn=0), images, labels)[0].item() == pytest.approx(plain.item())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_loss_and_gradient(name, dtype, tolerance):
    model, images, labels = case(name)
    images = images.to(dtype)
    loss, gradient = reference(model, images, labels)
    found, found_gradient = measured(matching(model.to(dtype)), images, labels)
    assert found.shape == () and found_gradient.dtype == dtype
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < tolerance


# In fp32 a ReLU of a deep network may lie on the other side of its kink.
@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [("conv", torch.float32, 2e-5), ("conv", torch.float64, 1e-6), ("resnet18", torch.float64, 1e-6)],
)
@pytest.mark.parametrize("source, target", [(HALF, OTHER), (OTHER, HALF), (THIRD, OTHER), (OTHER, THIRD)])
def test_a_teacher_normalises_for_itself(name, dtype, tolerance, source, target):
    model, images, labels = case(name)
    images = images.to(dtype)
    loss, gradient = reference(model, images, labels, source, target)
    assert abs(reference(model, images, labels)[0] - loss) > 1e-2, "the normalisation matters"
    found, found_gradient = measured(matching(model.to(dtype), target), images, labels, source)
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < tolerance


def two_teachers():
    return [(small_net(seed=0), OTHER), (small_net(seed=1), THIRD)]


def test_two_teachers_by_their_mean():
    _, images, labels = case("conv")
    both = [reference(model, images, labels, HALF, geometry) for model, geometry in two_teachers()]
    objective = combined([matching(*teacher) for teacher in two_teachers()], "mean")
    found, found_gradient = measured(objective, images.float(), labels)
    assert found.item() == pytest.approx((both[0][0] + both[1][0]).item() / 2, rel=2e-5)
    assert relative(found_gradient, (both[0][1] + both[1][1]) / 2) < 5e-5
    assert abs(both[0][0] - both[1][0]) > 1e-2


@pytest.mark.parametrize("first", [0, 3])
def test_two_teachers_in_turn(first):
    """Iteration i has teacher i mod 2, whenever the unit's first images start."""
    _, images, labels = case("conv")
    objective = combined([matching(*teacher) for teacher in two_teachers()], "turn")
    engine = Engine(objective, HALF, SCHEDULE, CPU, SETTINGS, steps=9)
    loop = Recovery(engine, Start(images.float().clamp(-1, 1), labels, [first] * 3), "turn")
    for iteration in range(first, 9):
        rows, columns = loop.views[iteration].matrices(8, torch.device("cpu"))
        seen = rows @ loop.images() @ columns
        found = loop.step().item()
        losses = [reference(model, seen, labels, HALF, geometry)[0].item() for model, geometry in two_teachers()]
        assert found == pytest.approx(losses[iteration % 2], rel=2e-5)
        assert abs(losses[0] - losses[1]) > 1e-3, "the teachers differ"


def test_without_statistics_the_loss_is_cross_entropy():
    model, images, labels = case("conv")
    expected = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels)
    found, _ = measured(matching(model.double(), r_bn=0.0), images, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_first_layer_is_multiplied():
    losses = {}
    for first in 0.0, 1.0, 10.0:
        model, images, labels = case("conv")
        losses[first] = measured(matching(model.double(), first=first), images, labels)[0].item()
    x = case("conv")[0][0].double()(images).transpose(0, 1).flatten(1)  # what the first BatchNorm gets
    norm = case("conv")[0][1].double()
    distance = (x.mean(1) - norm.running_mean).norm() + (x.var(1, correction=0) - norm.running_var).norm()
    assert losses[10.0] - losses[1.0] == pytest.approx(9 * R_BN * distance.item(), rel=1e-5)
    assert losses[1.0] - losses[0.0] == pytest.approx(R_BN * distance.item(), rel=1e-5)


@pytest.mark.parametrize("arch", ["timm/efficientnet_b0", "timm/mobilenetv3_small_050", "timm/regnetx_002"])
def test_networks_of_timm_keep_their_activations(arch):
    torch.manual_seed(4)
    model = scrambled(models.build(arch, 4, 32, "cifar"))
    images = torch.randn(3, 3, 32, 32)
    expected = copy.deepcopy(model)(images)
    objective = matching(model)
    torch.testing.assert_close(objective.networks()[0](images), expected, rtol=1e-4, atol=1e-5)
    assert sum(isinstance(module, BatchNormAct2d) for module in model.modules()) > 10


def test_a_network_without_batchnorm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    _, images, labels = case("conv")
    expected = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels)
    found, _ = measured(matching(copy.deepcopy(model).double(), r_bn=0.0), images, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(UserError, match="--r-bn 0.05: the teacher net has no BatchNorm.*--r-bn 0"):
        matching(model)


def test_the_teacher_stays_as_it_is():
    model, images, labels = case("conv")
    model.train().requires_grad_(True)
    objective = matching(model)
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    images = images.float().requires_grad_()
    first = objective(batch_of(images, labels))
    first.backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in objective.parameters())
    assert all(p.grad is None for p in objective.parameters())
    assert len(before) >= 12 and all(torch.equal(t, before[name]) for name, t in objective.state_dict().items())
    assert objective(batch_of(images, labels)).item() == first.item()


def moments64(x):
    x = x.double().transpose(0, 1).flatten(1)
    return x.mean(1), x.var(1, correction=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_matched_norm(layout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, generator=generator).contiguous(memory_format=layout)
    scale, shift = torch.rand(2, 3, dtype=torch.float64, generator=generator)
    # All three results at once, so that a gradient that one of them lacks cannot hide.
    assert torch.autograd.gradcheck(
        lambda x: matched_norm(x, scale, shift), (x.requires_grad_(),), atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_are_reduced_in_fp32(dtype, layout):
    # In bf16 a sum of 16384 values near 1 would be off by percents, and in fp16 it would overflow with the squares.
    deviation = torch.tensor([0.5, 3.0, 20.0]).view(3, 1, 1)
    x = deviation * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)) + 1
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


COMPILED = pytest.param("on", marks=[needs_compiler, pytest.mark.slow])


@pytest.mark.parametrize("precision, tolerance, gradient_tolerance", [("fp32", 2e-5, 5e-5), ("bf16", 5e-3, 0.2)])
@pytest.mark.parametrize("compile", ["off", COMPILED])
@pytest.mark.parametrize("name", ["conv", "norms"])
def test_the_fast_step_against_float64(name, precision, tolerance, gradient_tolerance, compile):
    runtime = Runtime(torch.device("cpu"), precision, compile)
    model, images, labels = case(name)
    loss, gradient = reference(model, images, labels)
    engine = Engine(matching(model), HALF, SCHEDULE, runtime, SETTINGS, steps=1)
    images = images.float().contiguous(memory_format=torch.channels_last).requires_grad_()
    with runtime.autocast():
        found = engine.loss(0)(images, labels, torch.arange(3), torch.tensor(0))
    found_gradient = torch.autograd.grad(found, images)[0]
    assert found.dtype == torch.float32 and found_gradient.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < gradient_tolerance


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("error:Dynamo")
@pytest.mark.parametrize(
    "teachers, combine, graphs", [(1, "mean", 1), (2, "mean", 1), (2, "turn", 2), ("norms", "mean", 1)]
)
def test_one_compilation_serves_every_round(teachers, combine, graphs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runtime = Runtime(torch.device("cpu"), "fp32", "on")
    _, images, labels = case("conv")
    used = (lambda: [(several_norms(), OTHER)]) if teachers == "norms" else lambda: two_teachers()[:teachers]
    objective = combined([matching(*teacher) for teacher in used()], combine)
    engine = Engine(objective, HALF, SCHEDULE, runtime, SETTINGS, steps=1)
    for iteration, count in enumerate((2, 3, 2, 5, 4, 3)):
        batch = images.float().repeat(2, 1, 1, 1)[:count].contiguous(memory_format=torch.channels_last)
        own = labels.repeat(2)[:count]
        found = engine.loss(iteration)(batch.requires_grad_(), own, torch.arange(count), torch.tensor(iteration))
        each = [reference(model, batch.detach(), own, HALF, space) for model, space in used()]
        each = [each[iteration % 2]] if combine == "turn" else each
        loss, gradient = (sum(parts) / len(each) for parts in zip(*each))
        assert found.item() == pytest.approx(loss.item(), rel=2e-5)
        assert relative(torch.autograd.grad(found, batch)[0], gradient) < 5e-5
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] == graphs, "neither a graph break nor a recompilation"


def test_bf16_does_not_change_the_result():
    model, images, labels = case("resnet18")
    loss, gradient = reference(model, images, labels)
    images = images.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = matching(model)(batch_of(images, labels))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss.item(), rel=5e-3)
    found_gradient = torch.autograd.grad(found, images)[0].double()
    assert nn.functional.cosine_similarity(found_gradient.flatten(), gradient.flatten(), dim=0) > 0.97
    assert found_gradient.norm().item() == pytest.approx(gradient.norm().item(), rel=0.05)
