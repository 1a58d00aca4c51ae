"""G-VBSM's densification (arXiv 2311.17950, section 3.1): the images of a class are to differ from one another."""

from __future__ import annotations

import torch

from utils.nets.resampling import averaging, resampled

POOLED = 32  # pixels, to which images are averaged
TEMPERATURE = 4
SQUARINGS = 24  # of exp(G / 2 ** SQUARINGS): G is small enough then up to eigenvalues of millions
TERMS = 6  # of its series


def densification(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum over classes of KL(softmax(l / 4) || softmax(l)), the first one detached; a scalar in float64.

    l are the eigenvalues of the Gram matrix of a class's images (N, 3, S, S), averaged to 32 x 32 pixels and flattened;
    `labels` (N,). A class with one image adds nothing.

    Eigenvalues would make the host wait, and classes of several sizes have no fixed shape. Neither is needed: with the
    matrices P = exp(G / 4) / tr exp(G / 4) and Q = exp(G) / tr exp(G) the sum is -3/4 tr(P G) - log tr exp(G / 4)
    + log tr exp(G), and its gradient is Q - P. The Gram matrix of all images, without what is between two classes, is
    one of blocks, and so are its powers.
    """
    flat = _pooled(images).flatten(1).double()
    gram = flat @ flat.T
    with torch.no_grad():
        same = (labels[:, None] == labels).double()
        masked = gram * same
        warm, warm_log, sharp, sharp_log = _exponentials(masked, same)
        value = -(1 - 1 / TEMPERATURE) * (warm * masked).sum() + ((sharp_log - warm_log) / same.sum(1)).sum()
        slope = sharp - warm
    change = (slope * gram).sum()
    return value + (change - change.detach())


def _pooled(images: torch.Tensor) -> torch.Tensor:
    if images.shape[-1] == POOLED:
        return images
    average = averaging(images.shape[-1], POOLED, images.device, images.dtype)
    return resampled(images, average, average)


def _exponentials(gram: torch.Tensor, same: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """exp(G / 4) and exp(G), each class's block over its trace and followed by that trace's logarithm (N,).

    By squaring exp(G / 2^k), with each block scaled to trace 1 again at each step. In float64, what k squarings make of
    its rounding is below 1e-8.
    """
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    small = gram / 2**SQUARINGS
    power = identity
    for term in range(TERMS, 0, -1):
        power = identity + small @ power / term
    found: list[torch.Tensor] = []
    logarithm = torch.zeros_like(gram[0])
    for squared in range(SQUARINGS + 1):
        if squared:
            power, logarithm = power @ power, 2 * logarithm
        trace = same @ power.diagonal()  # of the block of each image
        power, logarithm = power / trace[:, None], logarithm + trace.log()
        if 2 ** (SQUARINGS - squared) in (TEMPERATURE, 1):
            found += [power, logarithm]
    return tuple(found)
