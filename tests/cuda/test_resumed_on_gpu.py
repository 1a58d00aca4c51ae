"""A unit of recover and a student that are stopped in the middle on a GPU go on to the same result."""

import signal

import pytest
import torch
from torch import nn

from on_gpu import gpu, needs_gpu
from small_objectives import engine, recovery
from utils.data.loader import BatchSchedule
from utils.fit.loop import Learner, Training
from utils.run.resume import State
from utils.run.signals import Stopped

pytestmark = needs_gpu


class StopsAt(State):
    """Saves after a number of steps, and ends there as at a signal."""

    def __init__(self, path, steps):
        super().__init__(path, {"work": 1})
        self.left = steps

    def save_if_due(self, content):
        self.left -= 1
        if self.left == 0:
            self.save(content())
            raise Stopped(signal.SIGTERM)


@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("name, precision", [("batchnorm", "fp32"), ("batchnorm", "fp16"), ("statistics", "bf16")])
def test_a_unit(name, precision, steps, tmp_path):
    with gpu(precision, tf32=True) as runtime:
        made = engine(name, tmp_path, runtime)
        whole = recovery(made).run(lambda *_: None)
        with pytest.raises(Stopped):
            recovery(made).run(lambda *_: None, StopsAt(tmp_path / "state", steps))
        # By an engine of its own, as in another process.
        resumed = recovery(engine(name, tmp_path, runtime)).run(lambda *_: None, StopsAt(tmp_path / "state", -1))
    assert torch.equal(resumed, whole)


def student(runtime, state=None):
    """Its weights after six steps, with dropout, whose masks come from the GPU's own generator."""
    torch.manual_seed(0)
    network = runtime.place(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)))
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, fused=True)
    learner = Learner(network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2))
    inputs = torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(1)).to(runtime.device)

    def losses(forward, batch):
        return forward(batch).float().square().sum(1)

    training = Training("x", BatchSchedule(16, 8, 3), runtime, geometry=None, stream=(0,))
    training.run(learner, lambda start: iter(inputs[start:]), losses, state)
    return [parameter.detach().cpu() for parameter in network.parameters()]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_student(precision, tmp_path):
    with gpu(precision) as runtime:
        whole = student(runtime)
        with pytest.raises(Stopped):
            student(runtime, StopsAt(tmp_path / "state", 3))
        torch.cuda.manual_seed(99)
        resumed = student(runtime, StopsAt(tmp_path / "state", -1))
    assert all(map(torch.equal, resumed, whole))
