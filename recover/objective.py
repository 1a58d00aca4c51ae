"""What the synthetic images minimise: cross-entropy and the distance of their BatchNorm statistics to the teacher's."""

from __future__ import annotations

import torch
from torch import nn


def _at_least_fp32(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _ChannelMoments(torch.autograd.Function):
    """Mean and biased variance of x (N, C, H, W) over all but C, in fp32 (fp64 for fp64).

    One pass for the sum, one for the squares, and a gradient that is affine in x; autograd's own way through
    var_mean takes twice as long on a CPU.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.count = x.numel() // x.shape[1]
        dtype = _at_least_fp32(x)
        mean = x.sum((0, 2, 3), dtype=dtype) / ctx.count
        square = torch.linalg.vector_norm(x, 2, (0, 2, 3), dtype=dtype).square() / ctx.count
        ctx.save_for_backward(x, mean)
        return mean, square - mean * mean

    @staticmethod
    def backward(ctx, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> torch.Tensor:
        x, mean = ctx.saved_tensors
        # d mean / dx = 1 / n; d var / dx = 2 (x - mean) / n
        slope = 2 * grad_var / ctx.count
        offset = grad_mean / ctx.count - slope * mean
        return torch.addcmul(offset.to(x.dtype).view(-1, 1, 1), x, slope.to(x.dtype).view(-1, 1, 1))


class MatchedBatchNorm(nn.Module):
    """A frozen BatchNorm that also measures how far its input's statistics are from its running ones.

    After a forward pass `distance` is || mean - running_mean ||_2 + || var - running_var ||_2, of the biased variance.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.norm = norm
        self.distance = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = _ChannelMoments.apply(x)
        self.distance = torch.linalg.vector_norm(mean - self.norm.running_mean) \
            + torch.linalg.vector_norm(var - self.norm.running_var)
        return self.norm(x)


class Objective(nn.Module):
    """cross-entropy + r_bn * sum over BatchNorm layers of w * distance; w is `first_bn` for the first, 1 after it.

    SRe2L, section 3.2; the weight of the first layer from its published code. Takes over `model`: its BatchNorm
    layers are replaced, its parameters frozen, and it is put into eval mode.
    """

    def __init__(self, model: nn.Module, r_bn: float, first_bn: float):
        super().__init__()
        self.norms: list[MatchedBatchNorm] = []
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, attribute = name.rpartition(".")
                matched = MatchedBatchNorm(module)
                setattr(model.get_submodule(parent), attribute, matched)
                self.norms.append(matched)
        self.model = model.eval().requires_grad_(False)
        self.r_bn, self.first_bn = r_bn, first_bn

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The scalar loss, fp32, of normalised images (N, 3, S, S) with hard labels (N,)."""
        logits = self.model(images)
        loss = nn.functional.cross_entropy(logits.to(_at_least_fp32(logits)), labels)
        for index, norm in enumerate(self.norms):
            loss = loss + self.r_bn * (self.first_bn if index == 0 else 1.0) * norm.distance
        return loss
