"""Small builders that several test files share."""

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

from recover.methods import DELT
from recover.settings import Settings
from utils.run.device import Runtime
from utils.run.resume import State

CPU = Runtime(torch.device("cpu"), "fp32", "off")
few = settings(deadline=None, max_examples=40)
CONV3_FACTS = {  # what a checkpoint says of itself
    "arch": "conv3",
    "stem": "cifar",
    "num_classes": 3,
    "classes": ["b", "a", "ü"],
    "input_size": 16,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "top1": 61.25,
}


def recipe(**changed):
    """DELT's settings with some changed."""
    return Settings.of({**DELT, **changed})


def tree(folder):
    """Every file and folder below `folder`, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


class Interrupted(Exception):
    """Stands for the end of a process."""


class Dying(State):
    """The state of work that saves after each step, and is interrupted after so many."""

    def __init__(self, path, steps):
        super().__init__(path, {})
        self.left = steps

    def save_if_due(self, content):
        self.save(content())
        self.left -= 1
        if not self.left:
            raise Interrupted


@contextlib.contextmanager
def disk(folder, options):
    """A disk in memory at `folder`, with these options of mount. Skips the test where none can be mounted."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def gray(path, value, size=8):
    """An RGB image of one grey."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(path)


def noise(path, seed, size=8):
    """An image of random pixels; returns them, uint8 (size, size, 3)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def small_net(classes=4, seed=0):
    """Two convolutions with BatchNorm, for images of 8 pixels, with statistics and weights that are not trivial."""
    torch.manual_seed(seed)
    return scrambled(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        )
    )


def scrambled(model):
    """`model` in eval mode, its BatchNorms with random affine weights and running statistics."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                ):
                    tensor.uniform_(low, high)
    return model.eval()
