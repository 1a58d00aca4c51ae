"""The training of one student on a set of images, from scratch (DELT, section 4.1; the protocol of RDED)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from utils.evaluate import accuracy
from utils.files import UserError
from utils.images import progress
from utils.loader import Batches, TestImages
from utils.runtime import Runtime, seeded


@dataclass(frozen=True)
class Protocol:
    """What decides a student's accuracy beside the images, the teacher and the seed."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    labels: str  # soft or hard
    temperature: float
    mix: str
    rand_augment: str
    min_scale: float
    max_scale: float
    evaluations: int


@dataclass
class Result:
    """Accuracies in percent; `curve` has one entry an epoch, with top-1 where it was measured."""

    seed: int
    top1: float
    best_top1: float
    top5: float
    seconds: float
    curve: list[dict] = field(default_factory=list)


def default_lr(arch: str) -> float:
    """The published rates for AdamW."""
    return {"efficientnet_b0": 0.002, "mobilenet_v2": 0.0025, "vgg11": 0.0005, "alexnet": 0.0001, "vit_b_16": 0.0001,
            "swin_v2_t": 0.0001}.get(arch, 0.001)


def default_batch_size(num_classes: int, ipc: int, images: int) -> int:
    """The published batch: by IPC, doubled for many classes, 100 for the 200 of Tiny-ImageNet; never above the set."""
    size = 10 if ipc < 10 else 50 if ipc < 30 else 100
    size = 100 if num_classes == 200 else 2 * size if num_classes >= 100 else size
    return min(size, images)


def learning_rate(epoch: int, epochs: int) -> float:
    """The share of the rate in an epoch from 0: half a cosine's descent, so that it ends near one half."""
    return 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))


def evaluated_epochs(epochs: int, evaluations: int) -> set[int]:
    """Which epochs, counted from 1, are measured on the test set: evenly spread, the last one among them."""
    return {round(epochs * k / evaluations) for k in range(1, evaluations + 1)} - {0}


def train(student: nn.Module, teacher: nn.Module | None, batches: Batches, test: TestImages, mix: Callable,
          protocol: Protocol, seed: int, runtime: Runtime, mean: tuple, std: tuple, name: str) -> Result:
    """Train `student` in place and measure it. `teacher` is None for hard labels. Raises UserError on a bad loss."""
    started = time.monotonic()
    steps = batches.steps(protocol.batch_size)
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": protocol.weight_decay},
                                   {"params": plain, "weight_decay": 0.0}], protocol.lr, betas=(0.9, 0.999), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: learning_rate(epoch, protocol.epochs))
    scaler = runtime.grad_scaler()
    forward = runtime.compiled(student, protocol.epochs * steps)
    label = runtime.compiled(teacher, protocol.epochs * steps) if teacher else None
    measured = evaluated_epochs(protocol.epochs, protocol.evaluations)
    result = Result(seed, 0.0, 0.0, 0.0, 0.0)
    stream = batches.stream(protocol.batch_size, protocol.epochs, seed, "student")
    with progress(total=protocol.epochs * len(batches.folder), desc=name, unit="img") as bar:
        for epoch in range(protocol.epochs):
            student.train()
            total = torch.zeros((), device=runtime.device)
            for step, (images, labels) in enumerate(islice(stream, steps)):
                labels = labels.to(runtime.device, non_blocking=True)
                with seeded(seed, "mix", epoch, step):
                    images, shares = mix(runtime.normalised(images, mean, std), labels)
                with runtime.autocast():
                    loss = _loss(forward(images), images, shares, label, protocol.temperature)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                total += loss.detach()
                bar.update(len(images))
            schedule.step()
            entry = {"epoch": epoch + 1, "loss": total.item() / steps}
            if not math.isfinite(entry["loss"]):
                raise UserError(f"loss is {entry['loss']} in epoch {epoch + 1} of seed {seed}; try a smaller --lr than "
                                f"{protocol.lr}")
            if epoch + 1 in measured:
                result.top1, result.top5 = accuracy(student, test, runtime, mean, std)
                result.best_top1 = max(result.best_top1, result.top1)
                entry["top1"] = result.top1
            result.curve.append(entry)
            bar.set_postfix_str(f"epoch {epoch + 1}/{protocol.epochs}, loss {entry['loss']:.4f}"
                                f"{f', top-1 {result.top1:.2f}' if result.top1 else ''}", refresh=False)
    result.seconds = round(time.monotonic() - started, 1)
    return result


def _loss(logits: torch.Tensor, images: torch.Tensor, shares: torch.Tensor, label: Callable | None,
          temperature: float) -> torch.Tensor:
    """fp32. Soft: KL(student / T, teacher / T), batch mean. Hard: cross-entropy to the mixed classes' shares."""
    if label is None:
        return cross_entropy(logits.float(), shares)
    with torch.no_grad():
        target = softmax(label(images).float() / temperature, 1)
    return kl_div(log_softmax(logits.float() / temperature, 1), target, reduction="batchmean")
