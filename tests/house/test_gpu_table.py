"""The table of a GPU: its rows, what does not fit, and what ends by itself or by the clock."""

import os
import sys
import time

import pytest
import torch

from benchmarks import gpu, recover
from benchmarks.pairs import Comparison

MACHINE = dict(device="cpu", precision="fp32", compile="off", deterministic="on")
FOUND = Comparison([2.0, 4.0, 9.0], [1.0, 2.0, 3.0], 500.4, 400.0)


def test_a_row_in_the_table():
    row = gpu.Row("some work", 10, None)
    found = gpu.entry(FOUND, share=61.7)
    assert gpu.line(row, found) == "| some work | 4000 ms | 2000 ms | **2.00** (2.00 to 3.00) | 500 | 400 | 62 % |"
    assert gpu.line(row, gpu.entry(FOUND, peaks=False)).split("|")[4:] == [" **2.00** (2.00 to 3.00) ", *["  "] * 3, ""]
    texts = [gpu.line(row, found), gpu.line(row, "failed"), gpu.line(row, gpu.entry(FOUND, peaks=False)), gpu.HEAD]
    assert {text.count("|") for text in texts} == {8}


def test_rows_that_do_not_fit_are_said(monkeypatch):
    now, taken = [0.0], []

    def measured(name, machine, limit):
        taken.append((name, limit))
        now[0] += 45
        return gpu.entry(FOUND)

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(gpu, "ROWS", {name: gpu.Row(name, needs, None) for name, needs in zip("abc", (30, 60, 40))})
    lines = gpu.table(list("abc"), MACHINE, 100).splitlines()
    assert taken == [("a", 100.0), ("c", 55.0)]
    assert lines[0].startswith(f"CPU, PyTorch {torch.__version__}, fp32") and lines[2] == gpu.HEAD
    assert "| b | no time was left (about 60 s) |" in lines[5] and lines[6].startswith("| c | 4000 ms |")


@pytest.fixture
def python(monkeypatch, tmp_path):
    """Lets a script stand for the process of a row; its words are as those of Python."""
    script = tmp_path / "python"

    def stands_for(text):
        script.write_text(f"#!/bin/sh\n{text}")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return stands_for


def test_a_row_is_measured_in_a_process_of_its_own(python):
    python('while [ "$1" != --output ]; do shift; done; echo \'{"plain": 1.5}\' > "$2"')
    assert gpu.measured("whole", MACHINE, 60) == {"plain": 1.5}
    python("exit 3")
    assert gpu.measured("whole", MACHINE, 60) == "failed, exit code 3"


def test_a_row_that_hangs_is_ended_with_what_it_started(python, tmp_path):
    python(f"sleep 60 & echo $! > {tmp_path}/child; wait")
    assert gpu.measured("whole", MACHINE, 2.0) == "not done in 2 s"
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            state = open(f"/proc/{child}/stat").read().split()[2]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("its child is still there")


def test_a_step_s_share_of_the_rate(monkeypatch):
    monkeypatch.setattr(gpu, "compare", lambda plain, ours, pairs, units, between: between() or FOUND)
    monkeypatch.setattr(recover, "gemm_rate", lambda dtype, device: 1e12)
    products = 9 * (3 * 128 * 32**2 + 128 * 128 * 16**2 + 128 * 128 * 8**2) + 128 * 4 * 4 * 10
    found = gpu.step("conv3-32", MACHINE)
    assert found["share"] == pytest.approx(100 * 100 * 4 * products / 2.0 / 1e12) and found["ours"] == 2.0
