"""What the synthetic images minimise: cross-entropy and the distance of their BatchNorm statistics to the teacher's."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import nn

from recover.objectives.base import Batch, Objective, combined
from recover.settings import Settings
from utils.nets.layers import is_plain
from utils.nets.moments import affine_gradient, at_least_fp32, channel_moments, image_moments
from utils.nets.teacher import Teacher
from utils.run.errors import UserError


class _MatchedNorm(torch.autograd.Function):
    """y = scale * x + shift of x (N, C, H, W), and x's moments as `_moments` has them.

    What a plain graph computes in eight passes over the layer is two here: one kernel for both moments, and one
    affine gradient. Nothing is kept but x.
    """

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, by_image: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, var = _moments(x, by_image)
        ctx.save_for_backward(x, mean, scale)
        dtype = at_least_fp32(x)
        y = torch.addcmul(shift.view(-1, 1, 1), x.to(dtype), scale.view(-1, 1, 1))
        # Where `to` gives y itself, PyTorch 2.11 loses y's gradient when it compiles this, and says nothing: what is
        # returned has two names there (github.com/pytorch/pytorch/issues/180642).
        return y if y.dtype == x.dtype else y.to(x.dtype), mean, var

    @staticmethod
    def backward(ctx, grad_y: torch.Tensor, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> tuple:
        x, mean, scale = ctx.saved_tensors
        grad = _gradient(x, mean, grad_mean, grad_var)
        return grad.addcmul_(grad_y.to(grad.dtype), scale.view(-1, 1, 1)).to(x.dtype), None, None, None


class _Moments(torch.autograd.Function):
    """x's mean and biased variance alone, as _MatchedNorm has them."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, by_image: bool) -> tuple[torch.Tensor, torch.Tensor]:
        mean, var = _moments(x, by_image)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> tuple[torch.Tensor, None]:
        x, mean = ctx.saved_tensors
        return _gradient(x, mean, grad_mean, grad_var).to(x.dtype), None


def _moments(x: torch.Tensor, by_image: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance over all but C, each (C,), or `by_image`, each (N, C); in fp32 or above."""
    return image_moments(x) if by_image else channel_moments(x)


def _gradient(x: torch.Tensor, mean: torch.Tensor, grad_mean: torch.Tensor, grad_var: torch.Tensor) -> torch.Tensor:
    """Of the moments with respect to x, in their precision and in x's layout."""
    slope, offset = affine_gradient(grad_mean, grad_var, mean, x.numel() // mean.numel())
    return torch.addcmul(offset[..., None, None], x.to(mean.dtype), slope[..., None, None])


def matched_norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, by_image: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(scale * x + shift, mean, var) of x (N, C, H, W); the moments (C,), or of each image (N, C)."""
    return _MatchedNorm.apply(x, scale, shift, by_image)


def moments_alone(x: torch.Tensor, by_image: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, var) as `matched_norm` has them."""
    return _Moments.apply(x, by_image)


class MatchedBatchNorm(nn.Module):
    """A frozen BatchNorm that also measures how far its input's statistics are from its running ones.

    After a forward pass `distance` is || mean - running_mean ||_2 + || var - running_var ||_2, of the biased variance.
    """

    distance: torch.Tensor | None

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight.detach())
        shift = (0 if norm.bias is None else norm.bias.detach()) - scale * norm.running_mean
        for name, value in dict(scale=scale, shift=shift, mean=norm.running_mean, var=norm.running_var).items():
            self.register_buffer(name, value)
        self.distance = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, mean, var = matched_norm(x, self.scale, self.shift)
        self.distance = torch.linalg.vector_norm(mean - self.mean) + torch.linalg.vector_norm(var - self.var)
        return y


class MeasuredBatchNorm:
    """Measures what a BatchNorm that is more than one gets (timm's carry activations); it stays as it is.

    `distance` as that of MatchedBatchNorm.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        self.distance: torch.Tensor | None = None
        norm.register_forward_pre_hook(self._measure)

    def _measure(self, norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        mean, var = moments_alone(inputs[0])
        self.distance = torch.linalg.vector_norm(mean - norm.running_mean) + torch.linalg.vector_norm(
            var - norm.running_var
        )


class BatchNormMatching(Objective):
    """cross-entropy + r_bn * sum over BatchNorm layers of w * distance; w is `first_bn` for the first, 1 after it.

    SRe2L, section 3.2; the weight of the first layer from its published code. Layers that eval mode does not call, as
    those of an auxiliary head, do not count. Takes over the teacher's network: its plain BatchNorm layers are replaced,
    its parameters frozen, and it is put into eval mode. Unless `r_bn` is 0, raises UserError for a network without
    BatchNorm, here or, where none is called, with the first batch.
    """

    def __init__(self, teacher: Teacher, r_bn: float, first_bn: float):
        super().__init__()
        self.norms: list[nn.Module | MeasuredBatchNorm] = []  # each with its `distance` after a forward pass
        network = teacher.network
        for name, module in list(network.named_modules()):
            if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
                continue  # one without running statistics has nothing to match
            matched = self.matched(name, module)
            self.norms.append(matched)
            if isinstance(matched, nn.Module):
                network.set_submodule(name, matched)
        self.arch, self.r_bn, self.first_bn = teacher.arch, r_bn, first_bn
        self._require(self.norms)
        self.network = network.eval().requires_grad_(False)
        self.geometry, self.sha256 = teacher.geometry, teacher.sha256

    def _require(self, norms: Sequence[nn.Module | MeasuredBatchNorm]) -> None:
        if self.r_bn and not norms:
            raise UserError(
                f"--r-bn {self.r_bn:g}: the teacher {self.arch} has no BatchNorm whose statistics could be matched; "
                "give --r-bn 0, or a teacher with BatchNorm"
            )

    def matched(self, name: str, norm: nn.BatchNorm2d) -> nn.Module | MeasuredBatchNorm:
        """What measures the BatchNorm `name`: a module that takes its place, or what looks at its input."""
        return MatchedBatchNorm(norm) if is_plain(norm, nn.BatchNorm2d) else MeasuredBatchNorm(norm)

    def forward(self, batch: Batch) -> torch.Tensor:
        logits = self.network(batch.normalised(self.geometry))
        loss = nn.functional.cross_entropy(logits.to(at_least_fp32(logits)), batch.labels)
        called = [norm for norm in self.norms if norm.distance is not None]
        self._require(called)
        for index, norm in enumerate(called):
            loss = loss + self.r_bn * (self.first_bn if index == 0 else 1.0) * norm.distance
            # Kept beyond the step it would be one of its results: for CUDA graphs in memory that the next one writes.
            norm.distance = None
        return loss

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def identity(self) -> dict[str, Any]:
        return {"teacher": self.sha256, "r_bn": self.r_bn, "first_bn_multiplier": self.first_bn}


def build(teachers: Sequence[Teacher], settings: Settings) -> Objective:
    """The entry of the registry."""
    terms = [BatchNormMatching(teacher, settings.r_bn, settings.first_bn_multiplier) for teacher in teachers]
    return combined(terms, settings.combine)
