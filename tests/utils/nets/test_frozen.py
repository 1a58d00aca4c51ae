"""Networks that are prepared for speed say what they said before, and where they do not, it is one error."""

import copy

import pytest
import torch
from timm.layers import ScaledStdConv2d, StdConv2d
from torch import nn

from helpers import CPU, scrambled
from utils.data.geometry import Geometry
from utils.nets import models, winograd
from utils.nets.frozen import Untouched, difference, frozen
from utils.nets.teacher import Teacher
from utils.run.device import Runtime
from utils.run.errors import UserError

BF16 = Runtime(torch.device("cpu"), "bf16", "off")
GEOMETRY = Geometry(16, (0.4, 0.5, 0.6), (0.3, 0.25, 0.2), 5, None, "cifar")
WIDE = winograd.FROM_CHANNELS


class Halved(nn.Conv2d):
    """A convolution of somebody else's."""

    def forward(self, x):
        return super().forward(x) / 2


def hooked():
    conv = nn.Conv2d(WIDE, WIDE, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, output: output.relu())
    return conv


# What looks like a plain convolution that Winograd could compute, and is none.
STRANGE = {
    "ScaledStdConv2d": lambda: ScaledStdConv2d(WIDE, WIDE, 3, padding=1),
    "StdConv2d": lambda: StdConv2d(WIDE, WIDE, 3, padding=1),
    "a subclass": lambda: Halved(WIDE, WIDE, 3, padding=1),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDE, WIDE, 3, padding=1)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(WIDE, WIDE, 3, padding=1)),
    "hooked": hooked,
}


def network(conv):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, WIDE, 1), conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDE, 5))
    return nn.Sequential(*layers).eval()


def teacher(model):
    return Teacher(model, "net", GEOMETRY, "0" * 64)


@pytest.mark.parametrize("runtime, tolerance", [(CPU, 1e-4), (BF16, 0.05)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", STRANGE)
def test_convolutions_that_do_more_are_left_alone(name, runtime, tolerance):
    model, x = network(STRANGE[name]), torch.randn(2, 3, 16, 16)
    with torch.no_grad(), runtime.autocast():
        expected = copy.deepcopy(model)(x).float()
        found = frozen(model, runtime, teacher(model))(x).float()
    assert (found - expected).norm() < tolerance * expected.norm()
    assert not any(isinstance(module, winograd.WinogradConv2d) for module in model.modules())


@pytest.mark.parametrize("name", ["ScaledStdConv2d", "a subclass", "hooked"])
def test_a_layer_that_is_taken_for_another_is_one_error(name, monkeypatch):
    """As if Winograd still took everything that is called a convolution."""
    monkeypatch.setattr(winograd, "is_plain", isinstance)
    model = network(STRANGE[name])
    with pytest.raises(UserError, match=r"net: as prepared for cpu fp32, its outputs differ .* by [\d.]+ of"):
        frozen(model, CPU, teacher(model))


def test_the_error_of_low_precision_names_the_precision():
    """Of a network that sums what nearly cancels out, with weights that bf16 has to round; alone, it would pass."""
    model = network(lambda: nn.Conv2d(WIDE, WIDE, 3, padding=1))
    untouched = Untouched.of(model, torch.randn(20, 3, 16, 16), BF16)
    assert len(untouched.images) == 8
    untouched.compare(copy.deepcopy(model), "net")
    with torch.no_grad():
        model[-1].weight.mul_(1.5)
    with pytest.raises(UserError, match="bf16.*--precision fp32"):
        untouched.compare(model, "net")


def test_outputs_that_are_no_numbers_are_an_error():
    model = network(lambda: nn.Conv2d(WIDE, WIDE, 3, padding=1))
    untouched = Untouched.of(model, torch.randn(2, 3, 16, 16), CPU)
    with torch.no_grad():
        model[-1].bias[0] = float("nan")
    with pytest.raises(UserError, match="differ"):
        untouched.compare(model, "net")


def test_the_difference_is_that_of_the_worst_image():
    expected = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert difference(expected + torch.tensor([[0.0, 1.0], [0.0, 0.5]]), expected) == pytest.approx(0.5)
    assert difference(expected[:, :1], expected) == difference(expected * float("nan"), expected) == float("inf")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [CPU, BF16], ids=str)
@pytest.mark.parametrize(
    "arch",
    ["resnet18", "densenet121", "efficientnet_b0", "googlenet", "swin_t", "convnext_tiny", "timm/vit_tiny_patch16_224"]
    + [f"timm/{name}" for name in ("efficientnet_b0", "mobilenetv3_small_050", "densenet121", "regnetx_002")]
    + [f"timm/{name}" for name in ("resnetv2_50", "nf_resnet26", "resnetv2_50x1_bit", "tf_efficientnet_b0")],
)
def test_no_network_is_refused_for_rounding(arch, runtime):
    torch.manual_seed(1)
    model = scrambled(models.build(arch, 5, 64, "imagenet"))
    shape = Geometry(64, GEOMETRY.mean, GEOMETRY.std, 5, None, "imagenet")
    frozen(model, runtime, Teacher(model, arch, shape, "0" * 64))
