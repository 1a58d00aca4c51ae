"""Accuracy on a test set."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Callable

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.data.loader import EvalBatches
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.memory import ask
from utils.run.signals import SIGNALS


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    images: EvalBatches,
    geometry: Geometry,
    runtime: Runtime,
    after_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Top-1 and top-5 in percent of all ranks' `images`, with rank 0's statistics. The model is left in eval mode.

    `after_batch` is called before the first batch and after each one, as often by every rank, and may end the test.
    No signal does: not before the next call.
    """
    distributed.broadcast_buffers(model.eval())
    hits = torch.zeros(3, dtype=torch.long, device=runtime.device)  # first, among the first five, images
    others = distributed.all_reduce_max(len(images))[0] - len(images)  # batches that other ranks have more
    with SIGNALS.held():
        after_batch()
        for found in chain(images, repeat(None, others)):
            if found is not None:
                hits += _hits(model, found, geometry, runtime)
            after_batch()
    top1, top5, total = distributed.all_reduce_sum(hits).tolist()
    return 100 * top1 / total, 100 * top5 / total


def _hits(
    model: nn.Module, found: tuple[torch.Tensor, torch.Tensor], geometry: Geometry, runtime: Runtime
) -> torch.Tensor:
    """How often the first guess is right, one of the first five is, and of how many images: (3,)."""
    batch, labels = found
    logits = ask(model, batch, geometry, runtime)
    labels = transfer(labels, runtime.device)
    right = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return torch.stack([right[:, 0].sum(), right.any(1).sum(), labels.new_full((), len(labels))])
