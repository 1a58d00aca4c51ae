"""What a student sees: RandAugment, crop and flip of each image, then CutMix or MixUp of the batch."""

from __future__ import annotations

from typing import Callable

import torch
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from utils.files import UserError

MIXES = {"cutmix": (v2.CutMix, 1.0), "mixup": (v2.MixUp, 0.8), "none": (None, 0.0)}  # with the Beta's parameter


def augmentation(size: int, rand_augment: str, min_scale: float, max_scale: float, mean: tuple) -> v2.Transform:
    """RGB image -> RGB image of `size` pixels. `rand_augment` is a configuration of timm's RandAugment, or "none".

    Raises UserError for a configuration that timm does not take.
    """
    steps: list = []
    if rand_augment != "none":
        fill = tuple(round(255 * value) for value in mean)
        try:
            steps.append(rand_augment_transform(rand_augment, {"translate_const": int(size * 0.45), "img_mean": fill}))
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(f"--rand-augment {rand_augment}: not a configuration of timm's RandAugment ({error}); "
                            "for example rand-m6-n2-mstd1.0, or none") from None
    steps += [v2.RandomResizedCrop(size, scale=(min_scale, max_scale)), v2.RandomHorizontalFlip()]
    return v2.Compose(steps)


def mixer(name: str, num_classes: int) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """(images (B, 3, S, S), labels (B,)) -> (mixed images, label shares (B, classes)), by CutMix, MixUp or neither."""
    kind, alpha = MIXES[name]
    if kind is None:
        return lambda images, labels: (images, torch.nn.functional.one_hot(labels, num_classes).float())
    return kind(alpha=alpha, num_classes=num_classes)
