"""python -m benchmarks.cluster: how a large synthesis spreads over GPUs, by the sizes of its units.

A simulation of what recover does: rank r of G takes every G-th unit. From a measured rate, in updates of images a second, come
the units' seconds; each varies a little, and each process starts once. Idle is the share of the GPUs' time that passes while
others still work.
"""

from __future__ import annotations

import argparse

import numpy as np

from recover.schedule import count_rounds, round_of_ranks
from recover.units import split

# classes, IPC
CASES = {"ImageNet-1K, IPC 50": (1000, 50), "ImageNet-21K, IPC 20": (21841, 20)}
GPUS = [2**power for power in range(10)]


def unit_updates(classes: int, ipc: int, batch_size: int, iterations: int, round_iterations: int) -> np.ndarray:
    """Updates of images in each unit."""
    rounds = round_of_ranks(ipc, count_rounds(iterations, round_iterations))
    of_rank = [iterations - round_iterations * number for number in rounds]
    return np.array([sum(of_rank[rank] for _, rank in unit.members) for unit in split(classes, ipc, batch_size, "class")])


def spread(seconds: np.ndarray, gpus: int, start: float) -> tuple[float, float]:
    """Seconds until the last of `gpus` is done, and the share of their time that is idle."""
    busy = np.array([start * (len(own) > 0) + own.sum() for own in (seconds[rank::gpus] for rank in range(gpus))])
    return float(busy.max()), float(1 - busy.sum() / (gpus * busy.max()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, required=True, help="updates of images, as recover's bar shows them")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[100, 50])
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument("--round-iterations", type=int, default=500)
    parser.add_argument("--start", type=float, default=60, help="seconds of a process before its first step")
    parser.add_argument("--variation", type=float, default=0.03, help="standard deviation of a unit's time, of its mean")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    for name, (classes, ipc) in CASES.items():
        columns = []
        for batch_size in args.batch_size:
            updates = unit_updates(classes, ipc, batch_size, args.iterations, args.round_iterations)
            seconds = updates / args.images_per_second * random.normal(1, args.variation, len(updates)).clip(0.5)
            print(f"{name}, batch {batch_size}: {len(updates):,} units, {np.median(seconds) / 60:.1f} minutes each, "
                  f"{seconds.sum() / 3600:,.1f} GPU-hours; more than {len(updates):,} GPUs are of no use")
            columns.append([spread(seconds, gpus, args.start) for gpus in GPUS])
        print("| GPUs |" + "".join(f" hours, batch {size} | idle |" for size in args.batch_size))
        print("|---|" + "---|---|" * len(args.batch_size))
        for row, gpus in enumerate(GPUS):
            cells = (f" {column[row][0] / 3600:,.3g} | {column[row][1]:.1%} |" for column in columns)
            print(f"| {gpus} |{''.join(cells)}")
        print()


if __name__ == "__main__":
    main()
