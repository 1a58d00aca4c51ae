"""Wide residual networks for small images, which torchvision and timm do not have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, relu


class WideResNet(nn.Module):
    """WRN-D-K of CIFAR (Zagoruyko and Komodakis, 2016, arXiv 1605.07146, table 1), without dropout.

    Three groups of (D - 4) / 6 pre-activation blocks, 16 K, 32 K and 64 K channels wide; the second and the third one
    halve the image. Its parameters have the names of the code that most checkpoints come from (RepDistiller's).
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int):
        """`depth` is 6 n + 4."""
        super().__init__()
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = _convolution(3, 16, 3)
        blocks = (depth - 4) // 6
        for number, (before, width, stride) in enumerate(zip([16, *widths], widths, (1, 2, 2)), start=1):
            setattr(self, f"block{number}", _Group(blocks, before, width, stride))
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(adaptive_avg_pool2d(relu(self.bn1(x)), 1).flatten(1))


class _Group(nn.Module):
    def __init__(self, blocks: int, before: int, width: int, stride: int):
        super().__init__()
        first = _Block(before, width, stride)
        self.layer = nn.Sequential(first, *(_Block(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class _Block(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice. A shortcut that changes the width starts behind the first ReLU."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), _convolution(before, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), _convolution(width, width, 3)
        self.convShortcut = None if before == width else _convolution(before, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + self.conv2(relu(self.bn2(self.conv1(active))))


def _convolution(before: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False)
