"""Networks: the conv nets' parameters, and which stem small images get."""

import pytest
import torch

from utils.nets import models
from utils.run.errors import UserError


@pytest.mark.parametrize("depth, features", [(3, 128 * 4 * 4), (4, 128 * 2 * 2), (5, 128)])
def test_conv_net_parameters(depth, features):
    weights = models.build(f"conv{depth}", 10, 32, "cifar").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {"classifier.weight": (10, features), "classifier.bias": (10,)}
    for d in range(depth):
        expected |= {
            f"layers.conv.{d}.weight": (128, 3 if d == 0 else 128, 3, 3),
            f"layers.conv.{d}.bias": (128,),
            f"layers.norm.{d}.num_batches_tracked": (),
        }
        expected |= {f"layers.norm.{d}.{name}": (128,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shapes == expected


def test_the_width_of_a_conv_net():
    weights = models.build("conv3_w32", 10, 32, "cifar").state_dict()
    assert weights["layers.conv.1.weight"].shape == (32, 32, 3, 3) and weights["classifier.weight"].shape == (10, 512)


def test_a_conv_net_too_deep_for_its_images():
    with pytest.raises(UserError, match="conv6.*conv5"):
        models.build("conv6", 10, 32, "cifar")


@pytest.mark.parametrize("arch", ["conv7", "conv0", "conv3_w0", "resnet19", "timm/resnet19", "timm/", ""])
def test_an_unknown_architecture_is_one_error(arch):
    with pytest.raises(UserError, match=f"'{arch}' is not known"):
        models.build(arch, 10, 32, "cifar")


@pytest.mark.parametrize("stem, side", [("cifar", 32), ("imagenet", 8)])
def test_stem_decides_the_first_feature_map(stem, side):
    network, seen = models.build("resnet18", 3, 32, stem).eval(), []
    network.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    network(torch.zeros(2, 3, 32, 32))
    assert seen == [(2, 64, side, side)]


@pytest.mark.parametrize(
    "size, stem", [(28, "cifar"), (32, "cifar"), (64, "cifar"), (65, "imagenet"), (224, "imagenet")]
)
def test_the_small_stem_is_for_64_pixels_and_less(size, stem):
    assert models.default_stem(size) == stem


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "timm/resnet18"])
@pytest.mark.parametrize("stem", models.STEMS)
def test_the_stem_is_seen_in_the_weights(arch, stem):
    assert models.read_stem(arch, models.build(arch, 3, 64, stem).state_dict()) == stem


LINEAR = ["conv3", "wrn_16_2", "resnet18", "convnext_tiny", "vgg11", "timm/levit_128s"]
CONVOLUTIONS = ["squeezenet1_0", "squeezenet1_1", "timm/resnetv2_18", "timm/dpn68", "timm/dla34"]


@pytest.mark.parametrize("arch", LINEAR + CONVOLUTIONS)
def test_classes_are_counted_in_any_order_of_the_weights(arch):
    """A safetensors file has its tensors by name, and `stages` stands behind `head`. A head can be a convolution."""
    with torch.device("meta"):
        weights = models.build(arch, 7, 224, "imagenet").state_dict()
    for order in list(weights), sorted(weights), sorted(weights, reverse=True):
        assert models.read_num_classes(arch, {name: weights[name] for name in order}) == 7
