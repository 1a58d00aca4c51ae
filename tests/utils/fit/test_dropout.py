"""Dropout and stochastic depth: what a training draws follows from its seed, step and rank, and from nothing else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from launching import ENV, LAUNCH
from torch import nn
from torch.nn.functional import cross_entropy

from conftest import ROOT
from helpers import CPU
from utils.data.loader import BatchSchedule
from utils.fit.loop import Learner, Training
from utils.run.device import Runtime
from utils.run.resume import JointState
from utils.run.seeds import seeded

SCHEDULE = BatchSchedule(images=12, batch_size=4, epochs=3)  # 9 steps
COMPILED = Runtime(torch.device("cpu"), "fp32", "on")
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


class Network(nn.Module):
    """Both kinds: units that are dropped, and whole blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.middle, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.dropout, self.depth = nn.Dropout(0.4), torchvision.ops.StochasticDepth(0.4, "row")

    def forward(self, x):
        x = self.first(x).relu()
        x = x + self.depth(self.middle(x).relu())
        return self.last(self.dropout(x))


def batches(start=0):
    stream = torch.Generator().manual_seed(0)
    made = [(torch.randn(4, 6, generator=stream), torch.randint(3, (4,), generator=stream)) for _ in range(9)]
    return iter(made[start:])


def losses(forward, batch):
    inputs, labels = batch
    return cross_entropy(forward(inputs), labels, reduction="none")


def train(seed=0, state=None, losses=losses, runtime=CPU):
    """The weights after a training that begins with global generators as a process happens to have them."""
    network = Network()
    torch.seed()
    optimizer = torch.optim.SGD(network.parameters(), 0.2, momentum=0.9)
    learner = Learner(network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3))
    training = Training("x", SCHEDULE, runtime, geometry=None, stream=(seed, "test"))
    training.run(learner, batches, losses, state)
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def check_repeats(runtime):
    first = train(runtime=runtime)
    assert torch.equal(train(runtime=runtime), first)
    assert not torch.equal(train(seed=1, runtime=runtime), first)


def check_resumes(tmp_path, last, runtime):
    whole = train(runtime=runtime)
    done = 0

    def failing(forward, batch):
        nonlocal done
        done += 1
        if done > last:
            raise KeyboardInterrupt
        return losses(forward, batch)

    with pytest.raises(KeyboardInterrupt), JointState(tmp_path / "state", {}, 0) as state:
        train(state=state, losses=failing, runtime=runtime)
    with JointState(tmp_path / "state", {}, 0) as state:
        assert torch.equal(train(state=state, runtime=runtime), whole)
    assert done == last + 1, "it was stopped"


def test_the_seed_decides_what_is_dropped():
    check_repeats(CPU)


@pytest.mark.parametrize("last", [1, 5])
def test_a_stopped_training_drops_what_an_unbroken_one_does(tmp_path, last):
    check_resumes(tmp_path, last, CPU)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("check", ["check_repeats(COMPILED)", "check_resumes(Path(sys.argv[1]), 5, COMPILED)"])
def test_the_same_where_steps_are_compiled(tmp_path, check):
    """In a process of its own: one that has compiled is of no use to tests that fork."""
    paths = [str(path) for path in (ROOT, ROOT / "tests", Path(__file__).parent)]
    script = f"import sys; sys.path[:0] = {paths}\nfrom pathlib import Path\nfrom test_dropout import *\n{check}\n"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_each_step_drops_others_and_no_other_stream_is_touched():
    network, masks, seen = nn.Dropout(0.5), [], []

    def remembering(forward, batch):
        masks.append(forward(torch.ones(4, 64)))
        return (masks[-1] * weight).sum(1)

    def drawing(start):
        for _ in range(9):
            seen.append(torch.rand(()).item())  # another stream, on the same global generator
            yield None

    weight = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], 0.0)
    learner = Learner(network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3))
    torch.manual_seed(5)
    expected = [torch.rand(()).item() for _ in range(9)]
    torch.manual_seed(5)
    Training("x", SCHEDULE, CPU, geometry=None).run(learner, drawing, remembering)
    assert seen == expected
    assert all(not torch.equal(one, other) for k, one in enumerate(masks) for other in masks[:k])


def test_a_network_without_such_layers_computes_as_before():
    """As a loop that knows of no streams."""
    torch.manual_seed(1)
    expected, found = nn.Linear(6, 3), nn.Linear(6, 3)
    found.load_state_dict(expected.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), 0.2)
    for inputs, labels in batches():
        optimizer.zero_grad()
        (cross_entropy(expected(inputs), labels, reduction="none").sum() * 0.25).backward()
        optimizer.step()
    optimizer = torch.optim.SGD(found.parameters(), 0.2)
    learner = Learner(found, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))
    Training("x", SCHEDULE, CPU, geometry=None, stream=(7,)).run(learner, batches, losses)
    assert torch.equal(found.weight, expected.weight) and torch.equal(found.bias, expected.bias)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams_of_a_gpu():
    device = torch.device("cuda:0")
    torch.cuda.manual_seed(3)
    expected = torch.rand(2, device=device)
    torch.cuda.manual_seed(3)
    drawn = []
    for name in "aab":
        with seeded(name, device=device):
            drawn.append(torch.rand(2, device=device))
    assert torch.equal(torch.rand(2, device=device), expected)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


RANKS = """
import sys, torch
from torch import nn
from utils.data.loader import BatchSchedule
from utils.fit.loop import Learner, Training
from utils.run import distributed
from utils.run.device import Runtime

runtime, masks = Runtime.create("cpu", "fp32", "off"), []
with distributed.process_group(runtime.device):
    model = nn.Sequential(nn.Linear(1, 64), nn.Dropout(0.5))
    model[1].register_forward_hook(lambda module, inputs, output: masks.append((output == 0).clone()))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    learner = Learner(model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3))
    training = Training("x", BatchSchedule(8, 4, 2), runtime, geometry=None, stream=(0,))
    training.run(learner, lambda start: iter([torch.ones(2, 1)] * 4), lambda forward, batch: forward(batch).sum(1))
    torch.save(torch.stack(masks), f"{sys.argv[1]}/{distributed.get_rank()}.pt")
"""


@pytest.mark.slow
def test_ranks_drop_others(tmp_path):
    (tmp_path / "script.py").write_text(RANKS)
    found = []
    for _ in range(2):
        line = [*LAUNCH, "--nproc-per-node", "2", str(tmp_path / "script.py"), str(tmp_path)]
        subprocess.run(line, cwd=ROOT, check=True, env={**ENV, "PYTHONPATH": str(ROOT)})
        found.append([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    (first, second), again = found
    assert first.shape == second.shape == (4, 2, 64)
    assert all(not torch.equal(one, other) for one, other in zip(first, second))
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["mobilenet_v2", "efficientnet_b0", "timm/mobilenetv3_small_050"])
def test_squeeze_repeats(place, arch):
    line = dict(arch=arch, epochs=1, input_size=32)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        torch.seed()
        place.works("squeeze", output=place / f"{name}.pth", seed=seed, **line)
    one, same, other = (weights(place / f"{name}.pth") for name in ("one", "same", "other"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_validate_repeats(place):
    curves = []
    for name in "ab":
        torch.seed()
        place.works("validate", student_arch="mobilenet_v2", epochs=2, output_dir=place / name)
        [path] = (place / name / "results").glob("*.json")
        curves.append([epoch["loss"] for epoch in json.loads(path.read_text())["seeds"][0]["curve"]])
    assert curves[0] == curves[1] and len(curves[0]) == 2
