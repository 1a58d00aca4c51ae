"""3x3 convolutions with a quarter of the multiplications, for frozen networks in fp32 on a CPU.

F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: an output tile of 4x4
pixels is A^T [(G g G^T) * (B^T d B)] A, of an input tile d of 6x6 and a kernel g. Over all channels and tiles the
elementwise product is 36 matrix products. Its error in fp32 is a few units of 1e-6.
"""

from __future__ import annotations

import torch
from torch import nn

from utils.nets.layers import is_plain

# From here on the saved multiplications outweigh the transforms' memory traffic: `python -m benchmarks.winograd` found
# 1.1, 1.6 and 2.2 to 2.7 times the speed of the direct convolution with 128, 256 and 512 channels.
FROM_CHANNELS = 256

_B = torch.tensor(
    [
        [4, 0, 0, 0, 0, 0],
        [0, -4, 4, -2, 2, 4],
        [-5, -4, -4, -1, -1, 0],
        [0, 1, -1, 2, -2, -5],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ],
    dtype=torch.float64,
)
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64) / 24
_A = torch.tensor(
    [[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]], dtype=torch.float64
)
# Along both axes at once: a tile is a column of 36 or 16 numbers.
INPUT = torch.kron(_B.T, _B.T).float().contiguous()
OUTPUT = torch.kron(_A.T, _A.T).float().contiguous()


def _convolve(
    x: torch.Tensor, kernels: torch.Tensor, to_products: torch.Tensor, to_pixels: torch.Tensor
) -> torch.Tensor:
    """x (N, C, H, W), kernels (36, C, D) -> (N, D, H, W), channels_last."""
    count, channels, height, width = x.shape
    rows, columns = -(-height // 4), -(-width // 4)
    padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height))
    image, row, column, channel = padded.stride()
    tiles = padded.as_strided(
        (6, 6, count, rows, columns, channels), (row, column, image, 4 * row, 4 * column, channel)
    )
    products = torch.bmm((to_products @ tiles.reshape(36, -1)).view(36, -1, channels), kernels)
    pixels = (to_pixels @ products.view(36, -1)).view(4, 4, count, rows, columns, -1)
    pixels = pixels.permute(2, 3, 0, 4, 1, 5).reshape(count, 4 * rows, 4 * columns, -1)
    return pixels[:, :height, :width].permute(0, 3, 1, 2)


class _Convolve(torch.autograd.Function):
    """The gradient is a convolution with the kernels turned by 180 degrees and C and D swapped.

    Turned kernels on an image are the kernels on the turned image, turned back: the same `kernels` serve, with each
    tile read and written backwards.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(kernels)
        return _convolve(x, kernels, INPUT, OUTPUT)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kernels,) = ctx.saved_tensors
        return _convolve(grad, kernels.transpose(1, 2), INPUT.flip(1), OUTPUT.flip(0)), None


class WinogradConv2d(nn.Module):
    """A frozen `conv` of 3x3 kernels, stride 1 and padding 1; there is a gradient for its input alone."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        weight = conv.weight.detach().double()
        kernels = torch.einsum("ai,bj,dcij->abcd", _G, _G, weight).flatten(0, 1)
        self.register_buffer("kernels", kernels.float().contiguous())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = _Convolve.apply(x, self.kernels)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def fits(module: nn.Module) -> bool:
    """Whether `module` is a convolution that WinogradConv2d computes, and faster."""
    return (
        is_plain(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and module.stride == (1, 1)
        and module.padding in ((1, 1), "same")
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= FROM_CHANNELS
    )


def replace(network: nn.Module) -> nn.Module:
    """Put a WinogradConv2d in the place of each convolution of `network` that fits; returns `network`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if fits(child):
                setattr(parent, name, WinogradConv2d(child))
    return network
