"""Accuracy on a test set."""

from __future__ import annotations

import torch
from torch import nn

from utils import memory, ranks
from utils.loader import TestImages
from utils.runtime import Runtime


@torch.inference_mode()
def accuracy(model: nn.Module, images: TestImages, runtime: Runtime, mean: tuple, std: tuple) -> tuple[float, float]:
    """Top-1 and top-5 in percent of all ranks' `images`, with rank 0's statistics. The model is left in eval mode."""
    ranks.same_statistics(model.eval())
    hits = torch.zeros(3, dtype=torch.long, device=runtime.device)  # first, among the first five, images
    for batch, labels in images:
        with runtime.autocast():
            logits = memory.in_halves(lambda images: model(runtime.normalised(images, mean, std)), batch)
        labels = labels.to(runtime.device, non_blocking=True)
        found = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([found[:, 0].sum(), found.any(1).sum(), labels.new_tensor(len(labels))])
    top1, top5, images_of_all = ranks.total(hits).tolist()
    return 100 * top1 / images_of_all, 100 * top5 / images_of_all
