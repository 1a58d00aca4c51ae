"""Evaluation protocols: named sets of the flags that decide a student's accuracy beside the images and the teacher.

Most published differences between methods come from these and not from the images (DD-Ranking, arXiv 2505.13300), so a
result always says by which protocol it was measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from utils.images import SMALL


@dataclass(frozen=True)
class Protocol:
    """One protocol for one student and one set, with nothing left open."""

    epochs: int
    batch_size: int
    lr: float
    lr_schedule: str  # half-cosine or cosine
    weight_decay: float
    labels: str  # soft or hard
    temperature: float
    mix: str
    rand_augment: str
    shuffle_patches: int  # patches along a side
    min_scale: float
    max_scale: float
    flip: float
    evaluations: int


# None: decided by the student, the set or the input size, see `resolve`.
DELT = {"epochs": 300, "batch_size": None, "lr": None, "lr_schedule": "half-cosine", "weight_decay": 0.01, "labels": "soft",
        "temperature": None, "mix": "cutmix", "rand_augment": "rand-m6-n2-mstd1.0", "shuffle_patches": 1, "min_scale": 0.25,
        "max_scale": 1.0, "flip": 0.5}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # DELT, section 4.1 and its evaluation code.
    "delt": DELT,
    # RDED's evaluation code: a crop of at least one tile of the collage, whose tiles are shuffled; no RandAugment.
    "rded": {**DELT, "rand_augment": "none", "shuffle_patches": None, "min_scale": None},
    # SRe2L, section 4.1 (FKD): large batches, the rate falls to 0.
    "sre2l": {**DELT, "batch_size": 1024, "lr_schedule": "cosine", "rand_augment": "none", "min_scale": 0.08},
    # No teacher: what the images alone teach.
    "hard": {**DELT, "labels": "hard"},
    # The images as they stand, for DD-Ranking's robustness to augmentation.
    "noaug": {**DELT, "mix": "none", "temperature": 20.0, "rand_augment": "none", "min_scale": 1.0, "flip": 0.0},
}


def named(name: str, args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The flags of protocol `name` where `args` leaves them open, and what to call the outcome.

    It is `name` itself, another protocol's name where the flags make it that one, or `name` with what was changed.
    """
    given = {flag: getattr(args, flag) for flag in DELT if getattr(args, flag) is not None}
    flags = {**PROTOCOLS[name], **given}
    same = [other for other in (name, *PROTOCOLS) if PROTOCOLS[other] == flags]
    changed = [f"{flag}={value}" for flag, value in given.items() if PROTOCOLS[name][flag] != value]
    return same[0] if same else " ".join([name, *changed]), flags


def resolve(flags: dict[str, Any], arch: str, num_classes: int, ipc: int, images: int, input_size: int,
            evaluations: int) -> Protocol:
    """The protocol of `flags` for a student `arch` on a set of `images`, `ipc` a class."""
    flags = dict(flags)
    if flags["batch_size"] is None:
        flags["batch_size"] = default_batch_size(num_classes, ipc)
    flags["batch_size"] = min(flags["batch_size"], images)
    if flags["lr"] is None:
        flags["lr"] = default_lr(arch)
    if flags["temperature"] is None:
        flags["temperature"] = 4.0 if flags["mix"] == "mixup" else 20.0
    if flags["shuffle_patches"] is None:
        flags["shuffle_patches"] = 1 if input_size <= SMALL else 2  # RDED's factor
    if flags["min_scale"] is None:
        flags["min_scale"] = 1 / flags["shuffle_patches"]
    return Protocol(**flags, evaluations=evaluations)


def default_lr(arch: str) -> float:
    """The published rates for AdamW."""
    return {"efficientnet_b0": 0.002, "mobilenet_v2": 0.0025, "vgg11": 0.0005, "alexnet": 0.0001, "vit_b_16": 0.0001,
            "swin_v2_t": 0.0001}.get(arch, 0.001)


def default_batch_size(num_classes: int, ipc: int) -> int:
    """The published batch: by IPC, doubled for many classes, 100 for the 200 of Tiny-ImageNet."""
    size = 10 if ipc < 10 else 50 if ipc < 30 else 100
    return 100 if num_classes == 200 else 2 * size if num_classes >= 100 else size


