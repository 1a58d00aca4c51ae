"""A step as a GPU needs it: nothing is asked of the device, and nothing of it stays behind in a module."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from helpers import CPU, recipe, scrambled, small_net
from matching import GEOMETRY, matching, write_targets
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Mean
from recover.objectives.batchnorm import BatchNormMatching
from recover.objectives.features import FeatureMatching
from recover.objectives.wasserstein import WassersteinMatching
from utils.nets.statistics import Statistics
from utils.nets.teacher import Teacher
from waits import Waits


def teacher(network=None):
    return Teacher(network or small_net(), "net", GEOMETRY, "0" * 64)


def with_activation():
    network = small_net()
    network[1] = BatchNormAct2d(5, act_layer=nn.SiLU)
    return scrambled(network)


def of_classes(network):
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    sizes = {name: (4, module.num_features) for name, module in norms.items()}
    tensors = {f"{name}.{part}": torch.rand(size) for name, size in sizes.items() for part in PARTS}
    return Statistics("x", "f" * 64, {"teacher": "0" * 64}, (), tensors)


PARTS = ("class_mean", "class_total_var")


def wasserstein(folder):
    points = Statistics("p", "f" * 64, {}, (), {"points": torch.rand(4, 2, 6), "weights": torch.rand(4, 2)})
    network = with_activation()
    return WassersteinMatching(teacher(network), 0.1, 10.0, points, of_classes(network))


def statistics(folder):
    network = small_net()
    return matching(
        network,
        write_targets(folder / "t.safetensors", network, 2)(GEOMETRY),
        dtype=torch.float32,
        class_share=0.3,
        densification=0.5,
        drop=0.4,
    )


OBJECTIVES = {
    "batchnorm": lambda folder: BatchNormMatching(teacher(), 0.1, 10.0),
    "measured": lambda folder: BatchNormMatching(teacher(with_activation()), 0.1, 10.0),
    "several": lambda folder: Mean([BatchNormMatching(teacher(small_net(seed=k)), 0.1, 10.0) for k in range(2)]),
    "features": lambda folder: FeatureMatching(teacher(), ("crop", "scale", "color"), 12),
    "statistics": statistics,
    "wasserstein": wasserstein,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_for_nothing_and_leaves_nothing(name, tmp_path):
    objective = OBJECTIVES[name](tmp_path)
    settings = recipe(iterations=12, round_iterations=3)
    engine = Engine(objective, GEOMETRY, EarlyLate(2, **settings.schedule), CPU, settings, steps=1)
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    originals = torch.rand(8, 4, 3, 8, 8) if objective.needs_originals else None
    recovery = Recovery(engine, Start(images, torch.arange(8) // 2, [0] * 8, originals), 0, "recover", 0)
    recovery.step()
    with Waits() as waits:
        recovery.step()
    assert waits.found == []
    kept = [
        (owner, name)
        for owner in [*objective.modules(), *getattr(objective, "norms", [])]
        for name, value in vars(owner).items()
        if torch.is_tensor(value) or (isinstance(value, tuple) and any(map(torch.is_tensor, value)))
    ]
    # What a checkpoint's file brings is no result of a step.
    assert [name for _, name in kept if name not in ("weights", "droppable")] == []


def test_what_waits_is_found():
    with Waits() as waits:
        torch.arange(4)[torch.tensor(2)], torch.arange(4).sum().item(), torch.arange(4)[torch.arange(4) > 1]
    assert waits.found == ["_local_scalar_dense", "_local_scalar_dense", "index"]
