"""Networks of the field: as many parameters as the literature says, and a wide residual network against a plain one."""

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d, linear

from utils.nets import checkpoints, models
from utils.nets.features import extractor
from utils.nets.teacher import load_teacher


def conv_net(depth, width, classes=10, size=32):
    """Convolutions with bias, BatchNorm, a linear layer on what D halvings leave."""
    return sum(9 * (3 if d == 0 else width) * width + 3 * width for d in range(depth)) + classes * (
        width * (size // 2**depth) ** 2 + 1
    )


def wide_resnet(depth, factor, classes=10):
    total, before = 9 * 3 * 16, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            total += 2 * before + 9 * before * width + 2 * width + 9 * width * width
            total += before * width if before != width else 0
            before = width
    return total + 2 * before + classes * (before + 1)


COUNTS = {
    "conv1": conv_net(1, 128),
    "conv2": conv_net(2, 128),
    "conv3": 320_010,  # ConvNet of Dataset Condensation
    "conv3_w32": conv_net(3, 32),
    "wrn_16_2": wide_resnet(16, 2),
    "wrn_40_1": wide_resnet(40, 1),
    # torchvision's published counts for 1000 classes, with ten outputs in the place of 1000.
    "resnet18": 11_689_512 - 990 * 513 - 3 * 64 * (49 - 9),  # and a 3x3 kernel in the place of 7x7
    "mobilenet_v2": 3_504_872 - 990 * 1281,
    "shufflenet_v2_x0_5": 1_366_792 - 990 * 1025,
}


def test_the_derivations_give_what_the_papers_round():
    assert conv_net(3, 128) == 320_010
    assert round(wide_resnet(16, 2) / 1e6, 2) == 0.69  # CIFAR-10
    assert round(wide_resnet(40, 1) / 1e6, 2) == 0.56  # 0.6 M in the paper's table 4


@pytest.mark.parametrize("arch", COUNTS)
def test_as_many_parameters_as_published(arch):
    network = models.build(arch, 10, 32, "cifar")
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[arch]


@pytest.mark.parametrize("arch, side", [("mobilenet_v2", 16), ("shufflenet_v2_x0_5", 16), ("wrn_16_2", 16)])
def test_a_small_image_is_first_halved_behind_the_stem(arch, side):
    """The first layer keeps 32 pixels, and the first halving is that of a block."""
    network, sides = models.build(arch, 10, 32, "cifar").eval(), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    network(torch.zeros(1, 3, 32, 32))
    assert sides[0] == 32 and [value for value in sides if value < 32][0] == side


def plain_wide_resnet(weights, x, blocks=2):
    """WRN-16-K in eval mode from its weights, in float64."""

    def active(name, x):
        stats = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return batch_norm(x, *stats).relu()

    x = conv2d(x, weights["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"block{group}.layer.{block}", 2 if group > 1 and block == 0 else 1
            inner = active(f"{name}.bn1", x)
            middle = active(f"{name}.bn2", conv2d(inner, weights[f"{name}.conv1.weight"], stride=stride, padding=1))
            if block == 0:
                x = conv2d(inner, weights[f"{name}.convShortcut.weight"], stride=stride)
            x = x + conv2d(middle, weights[f"{name}.conv2.weight"], padding=1)
    features = active("bn1", x).mean((2, 3))
    return features, linear(features, weights["fc.weight"], weights["fc.bias"])


def test_the_wide_resnet_against_a_plain_one():
    torch.manual_seed(0)
    network = models.build("wrn_16_2", 5, 32, "cifar").double()
    network(torch.randn(16, 3, 32, 32, dtype=torch.float64))  # statistics that are not trivial
    network.eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features, logits = plain_wide_resnet(network.state_dict(), images)
    torch.testing.assert_close(network(images), logits)
    torch.testing.assert_close(extractor(network)(images), features)


@pytest.mark.parametrize("stem", models.STEMS)
def test_a_wide_resnet_has_one_stem_and_loads_as_a_teacher(tmp_path, stem):
    """A checkpoint that says no more than its weights, as others publish it, too."""
    network = models.build("wrn_16_2", 5, 32, stem)
    checkpoints.save(tmp_path / "bare.pth", network)
    teacher = load_teacher("wrn_16_2", tmp_path / "bare.pth", size_of_images=lambda: (32, "the images"))
    assert teacher.geometry.num_classes == 5
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher.network(images), network.eval()(images))


@pytest.mark.parametrize("arch", ["wrn_15_2", "wrn_16", "wrn_16_0", "wrn_16_2x"])
def test_what_is_no_wide_resnet(arch):
    assert not models.is_known(arch) and models.is_known("wrn_28_10")
