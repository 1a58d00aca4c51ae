"""Several processes: two that share a GPU, connected by Gloo, and two with a GPU each, by NCCL."""

import os
import subprocess

import pytest
import torch
from launching import words

from conftest import ROOT, images
from on_gpu import DEVICE, needs_gpu

pytestmark = [*needs_gpu, pytest.mark.slow]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def launch(place, stage, visible, **changes):
    """Two processes that see these GPUs. In full fp32, so that results can be compared."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    env |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    line = words(place, stage, 2, **{"device": DEVICE, **changes})
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def near(one, other):
    """The weights of two checkpoints, as far apart as sums in another order are after a few steps."""
    one, other = (torch.load(path, weights_only=True)["model"] for path in (one, other))
    for name, tensor in one.items():
        if tensor.is_floating_point():
            assert (tensor - other[name]).norm() <= 0.01 * other[name].norm() + 1e-4, name


def first_gpu():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def test_two_processes_train_on_one_gpu(place):
    said = launch(place, "squeeze", first_gpu(), output=place / "gpu.pth", epochs=1)
    assert "2 processes share 1 GPU" in said
    launch(place, "squeeze", "", output=place / "cpu.pth", epochs=1, device="cpu")
    near(place / "gpu.pth", place / "cpu.pth")
    launch(place, "validate", first_gpu())


def test_two_processes_share_the_units_on_one_gpu(place):
    assert place.spawn("recover", device=DEVICE, syn_dir=place / "one", batch_size=4).code == 0
    launch(place, "recover", first_gpu(), batch_size=4, syn_dir=place / "two")
    # Without TF32, which the single process has.
    launch(place, "recover", first_gpu(), batch_size=4, syn_dir=place / "again")
    assert images(place / "two") == images(place / "again") and len(images(place / "two")) == 12
    assert images(place / "one").keys() == images(place / "two").keys()


@two_gpus
@pytest.mark.parametrize("more", [{}, {"sync_bn": True}])
def test_two_gpus_train_by_nccl(place, more):
    said = launch(place, "squeeze", None, output=place / "nccl.pth", epochs=1, **more)
    assert "share" not in said
    launch(place, "squeeze", first_gpu(), output=place / "gloo.pth", epochs=1, **more)
    near(place / "nccl.pth", place / "gloo.pth")
    launch(place, "validate", None, save_labels=place / "labels", compile="on")


@two_gpus
def test_one_gpu_named_for_two_processes_is_an_error(place):
    line = words(place, "squeeze", 2, device="cuda:0")
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and "--device cuda:0: processes that train together need a GPU each" in done.stderr
