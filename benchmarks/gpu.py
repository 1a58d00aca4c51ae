"""python -m benchmarks.gpu: what this machine's GPU does, plain against ours, as one Markdown table.

Each row is measured in a process of its own, in the order of ROWS, until the time is over: a row that fails, or that
did not fit, says so in the table. `bash scripts/check_gpu.sh` runs the tests before it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch

from benchmarks import ranking, recover, squeeze, validate
from benchmarks.pairs import Comparison, add_machine, compare, machine_of, seconds
from utils import cli
from utils.run.device import Runtime
from utils.run.files import write_text

STEPS, PAIRS = 20, 3
HEAD = "| work | plain | this project | ratio | peak MB, plain | peak MB | share of the GEMM rate |"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    work: str
    needs: float  # seconds that it takes on a GPU of today, about: what is not left, is not begun
    measure: Callable[[dict], dict[str, Any]]  # the machine's arguments -> as `entry` gives it


def entry(found: Comparison, share: float | None = None, peaks: bool = True) -> dict[str, Any]:
    """A comparison as JSON has it. `share` in percent."""
    plain, ours = (statistics.median(samples) for samples in (found.plain, found.ours))
    ratios = [statistics.median(found.ratios), min(found.ratios), max(found.ratios)]
    kept = [found.plain_peak, found.ours_peak] if peaks else None
    return {"plain": plain, "ours": ours, "ratios": ratios, "peaks": kept, "share": share}


def step(case: str, machine: dict) -> dict[str, Any]:
    """A compiled step of recover, and the share of the matrix products' rate that it reaches."""
    runtime, rates = Runtime.create(**machine), []
    found = compare(
        (recover.plain_steps, dict(case=case, steps=STEPS, device=machine["device"])),
        (recover.our_steps, dict(case=case, steps=STEPS, **machine)),
        PAIRS,
        STEPS,
        lambda: rates.append(recover.gemm_rate(runtime.dtype, runtime.device)),
    )
    share = 100 * recover.flops(case) / statistics.median(found.ours) / statistics.median(rates)
    return entry(found, share)


def same_bytes(machine: dict) -> dict[str, Any]:
    """What the promise costs: with it in the place of plain, without it in that of ours."""
    kept, free = (dict(case="resnet18-32", steps=STEPS, **machine | {"deterministic": word}) for word in ("on", "off"))
    return entry(compare((recover.our_steps, kept), (recover.our_steps, free), PAIRS, STEPS))


def student(machine: dict) -> dict[str, Any]:
    amount = validate.Amount(pairs=2)
    return entry(validate.added_up(*dict(validate.parts("resnet18", amount, machine)).values(), amount.test_images))


def _step(case: str) -> Callable[[dict], dict[str, Any]]:
    return lambda machine: step(case, machine)


def _passes(size: int, images: int) -> Callable[[dict], dict[str, Any]]:
    return lambda machine: entry(ranking.passes("resnet18", size, images, 2, machine))


ROWS = {
    "recover-32": Row("recover, one step, ResNet-18, 32 px, 100 images", 60, _step("resnet18-32")),
    "recover-224": Row("the same, 224 px, 50 images", 70, _step("resnet18-224")),
    "whole": Row(
        "recover, whole run with its start, ResNet-18, 32 px, IPC 10, 1000 iterations in 8 rounds",
        110,
        lambda machine: entry(recover.whole_runs("resnet18-32", 1000, 1, machine), peaks=False),
    ),
    "validate": Row("validate, ResNet-18, 32 px, IPC 10, 300 epochs, added up", 50, student),
    "squeeze": Row(
        "squeeze, ResNet-18, 32 px, 5120 images",
        80,
        lambda machine: entry(squeeze.epochs("resnet18", 5120, 2, machine)),
    ),
    "ranking-32": Row("ranking, ResNet-18, 32 px, 5120 images", 40, _passes(32, 5120)),
    "same-bytes": Row("recover-32 with --deterministic on (left) and off", 60, same_bytes),
    "ranking-224": Row("ranking, ResNet-18, 224 px, 1280 images", 50, _passes(224, 1280)),
    "recover-64": Row("recover, one step, ResNet-18, 64 px, 50 images", 60, _step("resnet18-64")),
    "conv3": Row("recover, one step, conv3, 32 px, 100 images", 30, _step("conv3-32")),
}


def line(row: Row, found: dict[str, Any] | str) -> str:
    """A row of the table; `found` is a text where nothing was measured."""
    if isinstance(found, str):
        cells = [found, *[""] * 5]
    else:
        ratio = "**{:.2f}** ({:.2f} to {:.2f})".format(*found["ratios"])
        peaks = [f"{peak:.0f}" for peak in found["peaks"] or []] or ["", ""]
        share = f"{found['share']:.0f} %" if found["share"] else ""
        cells = [seconds(found["plain"]), seconds(found["ours"]), ratio, *peaks, share]
    return f"| {' | '.join([row.work, *cells])} |"


def measured(name: str, machine: dict, limit: float) -> dict[str, Any] | str:
    """A row in a process of its own, which is ended with all that it started when its time is over."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "row.json"
        words = [text for flag, value in machine.items() for text in (f"--{flag}", value)]
        command = [sys.executable, "-m", "benchmarks.gpu", "--row", name, "--output", str(path), *words]
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
        finally:
            if process.poll() is None:  # in a session of its own, it gets no interrupt from the terminal either
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return json.loads(path.read_text()) if code == 0 and path.exists() else f"failed, exit code {code}"


def table(names: list[str], machine: dict, budget: float) -> str:
    """The rows that the seconds of `budget` suffice for."""
    until = time.monotonic() + budget
    runtime = Runtime.create(**machine)
    card = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU"
    lines = [f"{card}, PyTorch {torch.__version__}, {runtime.precision}, same bytes {machine['deterministic']}:", ""]
    lines += [HEAD, "|---" * 7 + "|"]
    for name in names:
        row, left = ROWS[name], until - time.monotonic()
        found = measured(name, machine, left) if left >= row.needs else f"no time was left (about {row.needs:.0f} s)"
        lines.append(line(row, found))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=cli.positive_float, default=540, help="that all rows may take")
    parser.add_argument("--output", help="file for the table")
    add_machine(parser)
    args = parser.parse_args()
    machine = machine_of(args)
    if args.row:  # in the process of a row
        write_text(args.output, json.dumps(ROWS[args.row].measure(machine)))
        return
    machine["precision"] = Runtime.create(**machine).precision
    found = table(args.rows, machine, args.seconds)
    if args.output:
        write_text(args.output, found)


if __name__ == "__main__":
    main()
