"""Two implementations in turn on the same work, each in a process of its own, and what came of it."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Callable

import torch

from utils.run.cpus import job_cpus
from utils.run.device import Runtime

WORK = Callable[[], None]


@dataclass(frozen=True)
class Comparison:
    """Seconds of each pair's samples, and each side's peak memory in MiB: resident on a CPU, allocated on a GPU."""

    plain: list[float]
    ours: list[float]
    plain_peak: float
    ours_peak: float

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.plain, self.ours)]

    def __str__(self) -> str:
        return (
            f"plain {seconds(statistics.median(self.plain))}, ours {seconds(statistics.median(self.ours))}, ratio "
            f"{median_and_range(self.ratios)} over {len(self.ours)} pairs; peak "
            f"{self.plain_peak:.0f} and {self.ours_peak:.0f} MB"
        )


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"


def median_and_range(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--deterministic", choices=("on", "off"), default="on")


def machine_of(args: argparse.Namespace) -> dict[str, str]:
    """The arguments of `Runtime.create`; the device is resolved, because the plain side takes it as it is."""
    machine = dict(precision=args.precision, compile=args.compile, deterministic=args.deterministic)
    return dict(device=str(Runtime.create(args.device).device), **machine)


class Side:
    """A process that repeats one piece of work on request. `make(**arguments)` returns the work, in that process."""

    def __init__(self, make: Callable[..., WORK], **arguments: object):
        # From a server that has imported the libraries and computed nothing: no side inherits memory or threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.material"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments))
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported
        self.process.start()
        theirs.close()
        self._answer()  # made and warm

    def sample(self) -> float:
        """Seconds of one repetition."""
        self.pipe.send(True)
        return self._answer()

    def close(self) -> float:
        """End the process; returns its peak memory in MiB."""
        self.pipe.send(False)
        peak = self._answer()
        self.process.join()
        return peak

    def _answer(self) -> float:
        try:
            return self.pipe.recv()
        except EOFError:
            sys.exit("error: one side's process ended before its work was done; what it printed says why")


def settled(runtime: Runtime, steps: int) -> Runtime:
    """It compiles, or not, as it would with so many steps ahead, however few are measured."""
    return replace(runtime, compile="on" if runtime.compiles(steps) else "off")


def _serve(pipe, make: Callable[..., WORK], arguments: dict) -> None:
    # The workers of its DataLoaders are plain forks, as published code has them.
    multiprocessing.set_start_method(None, force=True)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(job_cpus())  # both sides; PyTorch's own default knows no quota
    work = make(**arguments)
    work()
    pipe.send(0.0)
    with contextlib.suppress(EOFError):  # of a parent that has failed
        while pipe.recv():
            started = time.perf_counter()
            work()
            pipe.send(time.perf_counter() - started)
        pipe.send(_peak_mb())


def _peak_mb() -> float:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(
    plain: tuple[Callable, dict],
    ours: tuple[Callable, dict],
    pairs: int,
    units: int = 1,
    between: Callable[[], None] | None = None,
) -> Comparison:
    """Sample both sides `pairs` times in turn; seconds are those of a sample over `units`.

    `between` is called in each pair, while neither side works.
    """
    samples: list[list[float]] = [[], []]
    with contextlib.ExitStack() as stack:
        sides = []
        for make, arguments in (plain, ours):
            sides.append(Side(make, **arguments))
            stack.callback(sides[-1].pipe.close)
        for _ in range(pairs):
            for side, found in zip(sides, samples):
                found.append(side.sample() / units)
            if between:
                between()
        return Comparison(*samples, *(side.close() for side in sides))
