"""What squeeze learns by: a dozen steps against a plain float64 loop."""

import copy
import math

import pytest
import torch

from helpers import CPU
from squeeze.augment import batches_of
from squeeze.train import Recipe, train
from students import MEAN, STD, geometry, noise_folder, small_student
from utils.fit.loop import Training

EPOCHS, BATCH, STEPS = 4, 5, 12  # 12 images are batches of 5, 5 and 2
LR, MOMENTUM, DECAY = 0.05, 0.9, 0.01


def rate(schedule, step):
    """The learning rate of a step, counted from 0."""
    if schedule == "constant":
        return LR
    if schedule == "cosine":
        return LR * (1 + math.cos(math.pi * step / STEPS)) / 2
    # onecycle: from a 25th of it, by half a cosine, to it after 30 % of the steps; and to nothing by another one.
    peak = 0.3 * (STEPS + 1) - 1
    if step <= peak:
        return LR + (LR / 25 - LR) * (1 + math.cos(math.pi * step / peak)) / 2
    return LR / 250_000 + (LR - LR / 250_000) * (1 + math.cos(math.pi * (step - peak) / (STEPS - peak))) / 2


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("momentum", [0.0, MOMENTUM])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_steps_are_sgd_with_nesterovs_momentum(tmp_path, schedule, momentum, smoothing):
    folder = noise_folder(tmp_path / "train")
    batches = batches_of(folder, 8, 2, torch.device("cpu"))
    shape = geometry(4)
    recipe = Recipe(EPOCHS, BATCH, LR, schedule, momentum, DECAY, smoothing, 2, 1, seed=3)
    model = small_student()
    plain = copy.deepcopy(model).double()
    train(model, batches, recipe, Training("teacher", batches.schedule(BATCH, EPOCHS), CPU, shape))

    velocities = [torch.zeros_like(p) for p in plain.parameters()]
    steps = list(batches.stream(BATCH, EPOCHS, 3, "squeeze"))
    assert len(steps) == STEPS
    for step, (images, labels) in enumerate(steps):
        mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MEAN, STD))
        logs = torch.log_softmax(plain((images.double() / 255 - mean) / std), 1)
        right = torch.nn.functional.one_hot(labels, 4)
        target = right * (1 - smoothing) + smoothing / 4
        gradients = torch.autograd.grad(-(target * logs).sum(1).mean(), list(plain.parameters()))
        with torch.no_grad():
            for weight, gradient, velocity in zip(plain.parameters(), gradients, velocities):
                gradient = gradient + DECAY * weight
                velocity.mul_(momentum).add_(gradient)
                weight -= rate(schedule, step) * (gradient + momentum * velocity if momentum else gradient)
    for found, expected in zip(model.state_dict().values(), plain.state_dict().values()):
        torch.testing.assert_close(found.double(), expected.double(), rtol=2e-3, atol=2e-5)
