"""What the tests of students share: protocols, a geometry for images of 8 pixels, streams, and a small student."""

from pathlib import Path

import torch
from torch import nn

from helpers import CPU, noise
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from validate.augment import Augmentation, Views
from validate.protocols import DELT, Protocol, SetFacts, resolve
from validate.stream import Stream

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)  # nobody's default
PLAIN = dict(rand_augment="none", mix="none", min_scale=1.0, flip=0.0)  # images as they stand


def protocol(num_classes: int = 10, **changes: object) -> Protocol:
    """DELT's protocol for a conv3 and 10 images a class, with changes."""
    return resolve({**DELT, **changes}, "conv3", SetFacts(num_classes, 10, 10 * num_classes, 32), 1)


def geometry(num_classes: int = 4, **changes: object) -> Geometry:
    return Geometry(
        **{**dict(input_size=8, mean=MEAN, std=STD, num_classes=num_classes, classes=None, stem="cifar"), **changes}
    )


def noise_folder(root: Path, count: int = 12, num_classes: int = 4, size: int = 8) -> ImageFolder:
    """`count` images of noise, in turn of each class, loaded."""
    for k in range(count):
        noise(root / f"c{k % num_classes}" / f"{k:02d}.png", k, size)
    folder = ImageFolder(root, "--syn-dir")
    folder.load()
    return folder


def stream(folder: ImageFolder, seed: int = 0, **changes: object) -> Stream:
    """The batches of `folder`, drawn by DELT's protocol with changes."""
    settings, shape = protocol(**changes), geometry(len(folder.classes))
    return Stream(Views(folder, Augmentation(settings, shape), 0), settings, seed, shape, CPU)


def small_student(classes: int = 4, seed: int = 0) -> nn.Module:
    """For images of 8 pixels. Convolutions have no bias: BatchNorm leaves nothing but rounding of its gradient."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, classes),
    )
