"""What the benchmarks work on when no real data is given: folders of noise and networks that know their statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from utils.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from utils.data.geometry import Geometry, plain
from utils.data.image_folder import ImageFolder
from utils.nets import checkpoints, models


def images(folder: Path, classes: int, per_class: int, size: int, seed: int = 0) -> Path:
    """An ImageFolder of PNGs. Blocks of noise, so that they compress about as photographs do."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        place = folder / f"{label:04d}"
        place.mkdir(parents=True)
        for index in range(per_class):
            blocks = random.integers(0, 256, (size // 4, size // 4, 3), np.uint8)
            Image.fromarray(blocks).resize((size, size), Image.BILINEAR).save(place / f"{index:03d}.png")
    return folder


def loaded(path: str) -> ImageFolder:
    """The ImageFolder at `path`, decoded."""
    folder = ImageFolder(path, "the benchmark's images")
    folder.load()
    return folder


def geometry(classes: int, size: int, stem: str) -> Geometry:
    names = tuple(f"{label:04d}" for label in range(classes))
    return Geometry(size, IMAGENET_MEAN, IMAGENET_STD, classes, names, stem)


def network(arch: str, classes: int, size: int, stem: str) -> nn.Module:
    """Random weights, and the running statistics that noise has with them: activations keep their usual size."""
    torch.manual_seed(0)
    model = models.build(arch, classes, size, stem)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the one batch, whole
    with torch.no_grad():
        model.train()(torch.randn(16, 3, size, size))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def teacher(path: Path, arch: str, classes: int, size: int, stem: str) -> Path:
    """A checkpoint of `network` in the format of squeeze."""
    facts = plain(geometry(classes, size, stem))
    checkpoints.save(path, network(arch, classes, size, stem), arch=arch, **facts, top1=0.0, epochs=0)
    return path
