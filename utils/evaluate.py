"""Accuracy on a test set."""

from __future__ import annotations

import torch
from torch import nn

from utils.loader import TestImages
from utils.runtime import Runtime


@torch.inference_mode()
def accuracy(model: nn.Module, images: TestImages, runtime: Runtime, mean: tuple, std: tuple) -> tuple[float, float]:
    """Top-1 and top-5 in percent. The model is left in eval mode."""
    model.eval()
    top1 = torch.zeros((), device=runtime.device)
    top5 = torch.zeros((), device=runtime.device)
    total = 0
    for batch, labels in images:
        with runtime.autocast():
            logits = model(runtime.normalised(batch, mean, std))
        labels = labels.to(runtime.device, non_blocking=True)
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top1 += hits[:, 0].sum()
        top5 += hits.any(1).sum()
        total += len(labels)
    return 100 * top1.item() / total, 100 * top5.item() / total
