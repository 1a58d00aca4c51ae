"""python -m benchmarks.cluster: how a large synthesis scales over GPUs, by the sizes of its units.

A simulation of what recover does: whoever is free takes the next unit. From a measured rate, in updates of images a
second, come the units' seconds; each varies a little, and each process starts once. Idle is the share of the GPUs' time
that passes while others still work.
"""

from __future__ import annotations

import argparse
import heapq

import numpy as np

from recover.earlylate import EarlyLate
from recover.methods import DELT
from recover.settings import Settings
from recover.units import split
from utils import cli

# classes, IPC
CASES = {"ImageNet-1K, IPC 50": (1000, 50), "ImageNet-21K, IPC 20": (21841, 20)}
GPUS = [2**power for power in range(10)]


def unit_updates(classes: int, ipc: int, batch_size: int, schedule: EarlyLate) -> np.ndarray:
    """Updates of images in each unit."""
    units = split(classes, ipc, batch_size, "class")
    return np.array([sum(schedule.updates_of[position] for _, position in unit.members) for unit in units])


def simulate(seconds: np.ndarray, gpus: int, start: float) -> tuple[float, float]:
    """Seconds until the last of `gpus` is done, and the share of their time that is idle."""
    used = min(gpus, len(seconds))
    free_at = [start] * used  # a heap: when each GPU asks for its next unit
    for unit in seconds:
        heapq.heapreplace(free_at, free_at[0] + unit)
    end = max(free_at)
    return float(end), max(0.0, float(1 - (start * used + seconds.sum()) / (gpus * end)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images-per-second",
        type=cli.positive_float,
        required=True,
        help="updates of images, as recover's bar shows them",
    )
    parser.add_argument("--batch-size", type=cli.positive, nargs="+", default=[100, 50])
    parser.add_argument("--iterations", type=cli.positive, default=4000)
    parser.add_argument("--round-iterations", type=cli.non_negative, default=500)
    parser.add_argument(
        "--start", type=cli.non_negative_float, default=60, help="seconds of a process before its first step"
    )
    parser.add_argument(
        "--variation",
        type=cli.non_negative_float,
        default=0.03,
        help="standard deviation of a unit's time, of its mean",
    )
    args = parser.parse_args()
    random = np.random.default_rng(0)
    for name, (classes, ipc) in CASES.items():
        columns = []
        for batch_size in args.batch_size:
            recipe = {**DELT, "iterations": args.iterations, "round_iterations": args.round_iterations}
            updates = unit_updates(classes, ipc, batch_size, EarlyLate(ipc, **Settings.of(recipe).schedule))
            seconds = updates / args.images_per_second * random.normal(1, args.variation, len(updates)).clip(0.5)
            print(
                f"{name}, batch {batch_size}: {len(updates):,} units, {np.median(seconds) / 60:.1f} minutes each, "
                f"{seconds.sum() / 3600:,.1f} GPU-hours; more than {len(updates):,} GPUs are of no use"
            )
            columns.append([simulate(seconds, gpus, args.start) for gpus in GPUS])
        print("| GPUs |" + "".join(f" hours, batch {size} | idle |" for size in args.batch_size))
        print("|---|" + "---|---|" * len(args.batch_size))
        for row, gpus in enumerate(GPUS):
            cells = (f" {column[row][0] / 3600:,.3g} | {column[row][1]:.1%} |" for column in columns)
            print(f"| {gpus} |{''.join(cells)}")
        print()


if __name__ == "__main__":
    main()
