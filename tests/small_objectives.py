"""One small objective of each kind, for images of 8 pixels, and steps of them on any machine."""

from pathlib import Path

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from helpers import recipe, scrambled, small_net
from matching import GEOMETRY, matching, write_targets
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Mean
from recover.objectives.batchnorm import BatchNormMatching
from recover.objectives.features import FeatureMatching
from recover.objectives.wasserstein import WassersteinMatching
from utils.nets.statistics import Statistics
from utils.nets.teacher import Teacher

ITERATIONS, IPC = 12, 2


def teacher(network=None):
    return Teacher(network or small_net(), "net", GEOMETRY, "0" * 64)


def with_activation():
    """Its first BatchNorm is more than torch's own."""
    network = small_net()
    network[1] = BatchNormAct2d(5, act_layer=nn.SiLU)
    return scrambled(network)


def wasserstein(folder):
    source, network = torch.Generator().manual_seed(3), with_activation()
    points = {
        name: torch.rand(4, IPC, *size, generator=source) + 0.1 for name, size in (("points", (6,)), ("weights", ()))
    }
    classes = {
        f"{name}.{part}": torch.rand(4, module.num_features, generator=source) + 0.5
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("class_mean", "class_total_var")
    }
    files = (Statistics(name, "f" * 64, {}, (), tensors) for name, tensors in (("p", points), ("c", classes)))
    return WassersteinMatching(teacher(network), 0.1, 10.0, *files)


def statistics(folder):
    network, terms = small_net(), dict(class_share=0.3, densification=0.5, drop=0.4)
    found = write_targets(Path(folder) / "targets.safetensors", network, 2)(GEOMETRY)
    return matching(network, found, dtype=torch.float32, **terms)


OBJECTIVES = {
    "batchnorm": lambda folder: BatchNormMatching(teacher(), 0.1, 10.0),
    "measured": lambda folder: BatchNormMatching(teacher(with_activation()), 0.1, 10.0),
    "several": lambda folder: Mean([BatchNormMatching(teacher(small_net(seed=k)), 0.1, 10.0) for k in range(2)]),
    "features": lambda folder: FeatureMatching(teacher(), ("crop", "scale", "color"), ITERATIONS),
    "statistics": statistics,
    "wasserstein": wasserstein,
}


def engine(name, folder, runtime):
    settings = recipe(iterations=ITERATIONS, round_iterations=3)
    return Engine(OBJECTIVES[name](folder), GEOMETRY, EarlyLate(IPC, **settings.schedule), runtime, settings, steps=1)


def recovery(made, starts=(0, 0, 3, 3, 6, 6, 9, 9)):
    """Of eight images in whole classes; those of a class start together."""
    source = torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 3, 8, 8, generator=source), torch.arange(8) // IPC
    originals = torch.rand(8, 4, 3, 8, 8, generator=source) if made.objective.needs_originals else None
    return Recovery(made, Start(images, labels, list(starts), originals), 0, "recover", 0)


def step(made, count, iteration):
    """(loss, gradient) of the first `count` of eight images at an iteration, on the engine's device."""
    device, source = made.runtime.device, torch.Generator().manual_seed(iteration)
    images = torch.randn(count, 3, 8, 8, generator=source).to(device, memory_format=torch.channels_last)
    originals = torch.randn(8, 4, 3, 8, 8, generator=source)[:count].to(device)
    images.requires_grad_()
    members = torch.arange(count, device=device)
    now = torch.full((), iteration, device=device)
    with made.runtime.autocast():
        more = originals if made.objective.needs_originals else None
        loss = made.loss(iteration)(images, members // IPC, members, now, more)
    return loss.detach(), torch.autograd.grad(loss, images)[0]
