"""A step as a GPU needs it: nothing is asked of the device, and nothing of it stays behind in a module."""

import pytest
import torch

from helpers import CPU
from small_objectives import OBJECTIVES, engine, recovery
from waits import Waits


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_for_nothing_and_leaves_nothing(name, tmp_path):
    made = engine(name, tmp_path, CPU)
    unit = recovery(made)
    for _ in range(3):
        unit.step()
    with Waits() as waits:
        unit.step()  # in which images join
    assert waits.found == []
    # On a GPU that is to give the same bytes each time, the gradient of PyTorch's own resizing is a slow scatter.
    assert not [name for name in waits.called if name.startswith("upsample") and name.endswith("backward")]
    objective = made.objective
    parts = getattr(objective, "objectives", [objective])
    kept = [
        name
        for owner in [*objective.modules(), *(norm for part in parts for norm in getattr(part, "norms", ()))]
        for name, value in vars(owner).items()
        if torch.is_tensor(value) or (isinstance(value, tuple) and any(map(torch.is_tensor, value)))
    ]
    # What a statistics file brings is no result of a step.
    assert [name for name in kept if name not in ("weights", "droppable")] == []


def test_what_waits_is_found():
    with Waits() as waits:
        torch.arange(4)[torch.tensor(2)], torch.arange(4).sum().item(), torch.arange(4)[torch.arange(4) > 1]
    assert waits.found == ["_local_scalar_dense", "_local_scalar_dense", "index"]
