"""Compiled steps of statistics matching, in a process of their own: tests that fork must not follow a compilation."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from helpers import recipe
from matching import CLASSES, GEOMETRY, NETS, example, matching, relative, write_targets

STEPS = (3, 5, 4, 5)  # images


def steps(name, precision, compile, folder):
    """(loss, gradient) of a few steps of batches of several sizes, and how many graphs that took."""
    import torch

    from recover.earlylate import EarlyLate
    from recover.engine import Engine
    from utils.run.device import Runtime

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    settings = recipe(iterations=12, round_iterations=0)
    runtime, model = Runtime(torch.device("cpu"), precision, compile), NETS[name]()
    found = write_targets(Path(folder) / "t.safetensors", model, 2)(GEOMETRY)
    objective = matching(model, found, dtype=torch.float32, class_share=0.3, densification=0.5, drop=0.4)
    engine = Engine(objective, GEOMETRY, EarlyLate(CLASSES, **settings.schedule), runtime, settings, 1)
    engine.reset(0, "recover", 1)
    images, labels = example(5)
    made = []
    for number, count in enumerate(STEPS):
        batch = (0.3 * images[number, :count]).float().contiguous(memory_format=torch.channels_last).requires_grad_()
        with runtime.autocast():
            loss = engine.loss(number)(batch, labels[:count], torch.arange(count), torch.tensor(number))
        made.append((loss.item(), torch.autograd.grad(loss, batch)[0]))
    return made, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def main(name, precision, folder):
    (eager, _), (compiled, graphs) = (steps(name, precision, compile, folder) for compile in ("off", "on"))
    assert graphs == 1, "neither a graph break nor a recompilation"
    bounds = {"fp32": (1e-5, 1e-4), "bf16": (1e-3, 0.05)}[precision]
    for (loss, gradient), (expected, expected_gradient) in zip(compiled, eager, strict=True):
        assert abs(loss - expected) < bounds[0] * abs(expected)
        assert relative(gradient, expected_gradient.double()) < bounds[1]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("name, precision", [("odd", "bf16"), ("grouped", "fp32")])
def test_a_compiled_step_is_the_eager_one(tmp_path, name, precision):
    code = f"import test_compiled_statistics; test_compiled_statistics.main({name!r}, {precision!r}, {str(tmp_path)!r})"
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "recover")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
