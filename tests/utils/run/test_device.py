"""The runtime: what `auto` stands for, when steps are compiled, and that compiled steps compute the same."""

import importlib.metadata
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from conftest import ROOT
from utils.run import device as module
from utils.run.device import Runtime, versions
from utils.run.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision, repaid", [("fp32", 2000), ("bf16", 300), ("fp16", 300)])
def test_a_compilation_is_made_when_the_steps_repay_it(precision, repaid, monkeypatch):
    monkeypatch.setattr(module, "_has_compiler", lambda device: True)

    def compiles(mode, steps):
        return Runtime(CPU, precision, mode).compiles(steps)

    assert not compiles("auto", repaid - 1) and compiles("auto", repaid)
    assert not compiles("off", 10**6) and compiles("on", 1)
    monkeypatch.setattr(module, "_has_compiler", lambda device: False)
    assert not compiles("auto", repaid)


def test_an_uncompiled_function_is_itself():
    assert Runtime(CPU, "fp32", "auto").compiled(abs, 1) is abs


def test_a_missing_compiler_is_said_where_one_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile on: no C\+\+ compiler"):
        Runtime.create("cpu", "fp32", "on")
    assert not Runtime.create("cpu", "fp32", "auto").compiles(10**6)


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cpu:1", ""])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"--device {name}: not there; available: cpu"):
        Runtime.create(name)


def test_autocast_computes_in_the_runtime_s_precision():
    x = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        runtime = Runtime(CPU, precision, "off")
        assert runtime.dtype == dtype
        with runtime.autocast():
            assert (x @ x).dtype == dtype


def test_the_versions_are_those_that_are_installed():
    found = versions()
    assert found["torch"] == importlib.metadata.version("torch") and found["timm"] and found["python"].startswith("3.")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_compiled_is_eager_for_every_number_of_images():
    """The first dimension varies from call to call, as where rounds add images; one of them is a single image."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    ).eval()

    def function(images, labels, now):
        return nn.functional.cross_entropy(network(images), labels) * (1 + now)

    compiled = Runtime(CPU, "fp32", "on").compiled(function, 1)
    assert compiled is not function
    compilations = torch._dynamo.utils.counters["stats"]
    compilations.clear()
    for number, count in enumerate((4, 1, 3, 7, 1, 2, 15, 4)):
        images = torch.randn(count, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        labels, now = torch.arange(count) % 5, torch.tensor(float(number))
        found, expected = ([images.clone().requires_grad_()] for _ in range(2))
        found.append(compiled(found[0], labels, now))
        expected.append(function(expected[0], labels, now))
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)
        found[1].backward()
        expected[1].backward()
        torch.testing.assert_close(found[0].grad, expected[0].grad, rtol=1e-4, atol=1e-6)
    # One for any number of images (torch takes another way for 16 and more), and one for a single image.
    assert compilations["unique_graphs"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers", ["", "case \"$*\" in *--version*|*-dumpversion*) echo 'g++ 12.2.0'; exit 0;; esac\n"]
)
@pytest.mark.parametrize("asked", ["auto", "on"])
def test_a_compiler_that_cannot_compile_is_one_line(tmp_path, asked, answers):
    """auto continues without it, on ends with exit code 2; both say what is missing, if the compiler does."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from utils.run import device, entry\n"
        "device.COMPILE_FROM_STEPS = 1\n"
        "def main():\n"
        f"    double = device.Runtime.create('cpu', 'fp32', {asked!r}).compiled(lambda x: (2 * x).sin(), 1)\n"
        "    torch.testing.assert_close(double(torch.ones(3)), torch.full((3,), 2.0).sin())\n"
        "    torch.testing.assert_close(double(torch.ones(2)), torch.full((2,), 2.0).sin())\n"
        "entry.run(main)\n"
    )
    broken = tmp_path / "g++"
    fails = "echo 'In file x.h:' >&2; echo 'y.h:3: fatal error: Python.h: No such file' >&2; exit 1\n"
    broken.write_text(f"#!/bin/sh\n{answers}{fails}")
    broken.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "CXX": str(broken), "PYTHONPATH": str(ROOT)}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, str(script)], text=True, capture_output=True, env=env)
    told = done.stdout if asked == "auto" else done.stderr.split("error: --compile on")[-1]
    assert "Python.h: No such file" in told or not answers
    assert "CUDA_HOME" not in done.stderr, "as torch says where CUDA is installed and no GPU is there"
    if asked == "auto":
        assert done.returncode == 0 and done.stdout.count("continuing without it") == 1, done.stderr
    else:
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and "--compile off" in line and "Traceback" not in done.stderr
