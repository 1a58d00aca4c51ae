"""What the networks of the field cost, without making one: for estimates, which are to take no time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from utils.data.datasets import SMALL_SIZE

# At 224 pixels: multiply-adds in billions, activations and parameters in millions, as timm's tables of results have
# them; and how many times larger along a side the maps are with the stem for small images.
_TABLE = {
    "resnet18": (1.82, 2.48, 11.7, 4),
    "resnet34": (3.67, 3.74, 21.8, 4),
    "resnet50": (4.11, 11.1, 25.6, 4),
    "resnet101": (7.83, 16.2, 44.5, 4),
    "densenet121": (2.87, 6.9, 8.0, 4),
    "mobilenet_v2": (0.31, 6.7, 3.5, 2),
    "efficientnet_b0": (0.40, 6.75, 5.3, 2),
    "vgg11": (7.61, 7.4, 132.9, 1),
    "vit_b_16": (17.6, 23.9, 86.6, 1),
}
KNOWN = (*_TABLE, "conv1 to conv6", "conv3_w32 and the like")
_CONV = re.compile(r"conv([1-6])(?:_w(\d+))?")


@dataclass(frozen=True)
class Cost:
    """Of one image."""

    flops: float  # of a forward pass, multiplications and additions
    activations: float  # numbers that the layers give
    parameters: float


def cost(arch: str, size: int) -> Cost | None:
    """Of a network for images of `size` pixels, about; None where it is not known."""
    if match := _CONV.fullmatch(arch):
        return _conv_net(int(match[1]), int(match[2] or 128), size)
    if arch not in _TABLE:
        return None
    billions, activations, parameters, larger = _TABLE[arch]
    area = (size * (larger if size <= SMALL_SIZE else 1) / 224) ** 2
    return Cost(2e9 * billions * area, 1e6 * activations * area, 1e6 * parameters)


def _conv_net(depth: int, width: int, size: int) -> Cost:
    products = activations = parameters = 0
    channels = 3
    for _ in range(depth):
        products += 9 * channels * width * size**2
        activations += width * size**2
        parameters += 9 * channels * width
        channels, size = width, size // 2
    return Cost(2.0 * products, float(activations), float(parameters))
