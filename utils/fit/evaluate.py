"""Accuracy on a test set."""

from __future__ import annotations

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.data.loader import EvalBatches
from utils.run import distributed
from utils.run.device import Runtime
from utils.run.memory import run_batch


@torch.inference_mode()
def accuracy(model: nn.Module, images: EvalBatches, geometry: Geometry, runtime: Runtime) -> tuple[float, float]:
    """Top-1 and top-5 in percent of all ranks' `images`, with rank 0's statistics. The model is left in eval mode."""
    distributed.broadcast_buffers(model.eval())
    hits = torch.zeros(3, dtype=torch.long, device=runtime.device)  # first, among the first five, images
    for batch, labels in images:
        with runtime.autocast():
            logits = run_batch(lambda images: model(geometry.normalise(images, runtime.device)), batch, may_split=True)
        labels = labels.to(runtime.device, non_blocking=True)
        found = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([found[:, 0].sum(), found.any(1).sum(), labels.new_tensor(len(labels))])
    top1, top5, total = distributed.all_reduce_sum(hits).tolist()
    return 100 * top1 / total, 100 * top5 / total
