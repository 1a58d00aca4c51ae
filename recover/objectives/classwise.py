"""BatchNorm statistics class by class: each class of a batch against its own mean and variance."""

from __future__ import annotations

import torch
from torch import nn

from recover.objectives.batchnorm import MatchedBatchNorm, matched_norm, moments_alone


def class_distance(
    mean: torch.Tensor, var: torch.Tensor, labels: torch.Tensor, targets: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """The mean over the batch's classes of || mean - target ||_2 and of || variance - target ||_2, their sum.

    `mean` and `var` (N, C) are those of each image, `targets` (K, C) each class's mean and variance over all its images
    and pixels. A class's variance is the mean of its images' variances and the variance of their means.
    """
    same = (labels[:, None] == labels[None, :]).to(mean.dtype)
    counts = same.sum(1)
    share = same / counts[:, None]  # (N, N); in a row, of the images of this one's class
    own_mean = share @ mean
    own_var = share @ (var + (mean - own_mean).square())
    norms = [torch.linalg.vector_norm(own - goal[labels], dim=1) for own, goal in zip((own_mean, own_var), targets)]
    # Each class counts once, however many images it has.
    return ((norms[0] + norms[1]) / counts).sum() / (1 / counts).sum()


class ClassMatchedBatchNorm(MatchedBatchNorm):
    """A frozen BatchNorm that measures how far each class's statistics are from its own.

    `labels` (N,) are to be set before a forward pass; with None it measures nothing.
    """

    def __init__(self, norm: nn.BatchNorm2d, class_mean: torch.Tensor, class_var: torch.Tensor):
        super().__init__(norm)
        self.register_buffer("class_mean", class_mean)
        self.register_buffer("class_var", class_var)
        self.labels: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, *moments = matched_norm(x, self.scale, self.shift, by_image=True)
        if self.labels is not None:
            self.distance = _distance(*moments, self.labels, (self.class_mean, self.class_var))
        return y


class ClassMeasuredBatchNorm:
    """Measures the same of what a BatchNorm gets that is more than one; it stays as it is."""

    def __init__(self, norm: nn.BatchNorm2d, class_mean: torch.Tensor, class_var: torch.Tensor):
        norm.register_buffer("class_mean", class_mean, persistent=False)
        norm.register_buffer("class_var", class_var, persistent=False)
        self.labels, self.distance = None, None
        norm.register_forward_pre_hook(self._measure)

    def _measure(self, norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        if self.labels is not None:
            moments = moments_alone(inputs[0], by_image=True)
            self.distance = _distance(*moments, self.labels, (norm.class_mean, norm.class_var))


def _distance(
    mean: torch.Tensor,
    var: torch.Tensor,
    labels: torch.Tensor,
    targets: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """`class_distance` in the moments' own precision."""
    with torch.autocast(mean.device.type, enabled=False):
        return class_distance(mean, var, labels, targets)
