"""python -m benchmarks.recover: the synthesis, plain against ours.

steps       one update of a full batch, in steady state
whole       a whole run from process start to the last file, compilation with an empty cache included
early-late  ours in 8 rounds against ours with all images in all iterations
methods     one update of other methods against one of delt, both ours
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import material
from benchmarks import statistics as statistics_files
from benchmarks.pairs import Comparison, add_machine, compare, machine_of, median_and_range, seconds
from benchmarks.plain import PlainRecovery
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.methods import METHODS, recipes
from recover.needs import needs
from recover.objectives import OBJECTIVES
from recover.settings import Settings
from utils import cli
from utils.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from utils.nets.teacher import Teacher
from utils.run.device import Runtime

# arch, pixels, stem, images, classes
CASES = {
    "resnet18-32": ("resnet18", 32, "cifar", 100, 10),
    "conv3-32": ("conv3", 32, "cifar", 100, 10),
    "resnet18-64": ("resnet18", 64, "cifar", 50, 200),
    "resnet18-224": ("resnet18", 224, "imagenet", 50, 1000),
}
# Methods that need no more than networks and noise.
MEASURED = [name for name, recipe in METHODS.items() if recipe["objective"] in ("batchnorm", "statistics")]
LONG = 4000  # iterations of the run whose middle the steps stand for


def batch(size: int, count: int, classes: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 3, size, size).to(device), (torch.arange(count) % classes).to(device)


def plain_steps(case: str, steps: int, device: str) -> Callable[[], None]:
    arch, size, stem, count, classes = CASES[case]
    images, labels = batch(size, count, classes, device)
    loop = PlainRecovery(
        material.network(arch, classes, size, stem), images, labels, [0] * count, (IMAGENET_MEAN, IMAGENET_STD), LONG
    )
    loop.iteration = LONG // 4
    return lambda: [loop.step() for _ in range(steps)]


def our_recovery(
    case: str, iterations: int, starts: list[int], method: str = "delt", **machine: str
) -> Callable[[], Recovery]:
    """A maker of fresh recoveries that share one objective."""
    arch, size, stem, _, classes = CASES[case]
    images, labels = batch(size, len(starts), classes)
    runtime = Runtime.create(**machine)
    recipe = {**recipes(input_size=size)[method], "iterations": iterations, "round_iterations": 0}
    geometry = material.geometry(classes, size, stem)
    teacher = Teacher(material.network(arch, classes, size, stem), arch, geometry, sha256="")
    with tempfile.TemporaryDirectory() as place:
        files = ()
        if needs(method).statistics:
            measured = replace(teacher, network=copy.deepcopy(teacher.network))
            files = (str(statistics_files.targets(Path(place) / "targets.safetensors", measured)),)
        settings = Settings.of(recipe, files)
        objective = OBJECTIVES[settings.objective].build([teacher], settings)
    engine = Engine(objective, geometry, EarlyLate(1, **settings.schedule), runtime, settings, LONG)
    return lambda: Recovery(engine, Start(images, labels, starts), 0)


def our_steps(case: str, steps: int, method: str = "delt", **machine: str) -> Callable[[], None]:
    loop = our_recovery(case, LONG, [0] * CASES[case][3], method, **machine)()
    loop.iteration = LONG // 4
    return lambda: [loop.step() for _ in range(steps)][-1].item()


def our_loop(case: str, iterations: int, starts: list[int], **machine: str) -> Callable[[], None]:
    make = our_recovery(case, iterations=iterations, starts=starts, **machine)
    return lambda: make().run(lambda *_: None)


def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of six.

    A GPU gets larger ones and several before it is waited for: what starts a kernel would be a part of the time.
    """
    size, products = (8192, 8) if device.type == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(products):
            c = a @ b
        c[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return products * 2 * size**3 / best


def flops(case: str) -> int:
    """Multiplications and additions of one step, forward and backward to the pixels alone, by direct convolution.

    A share of the GEMM rate can be above 100 %: Winograd's convolutions need fewer.
    """
    arch, size, stem, count, classes = CASES[case]
    model = material.network(arch, classes, size, stem).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, size, size, requires_grad=True)).sum().backward()
    return count * counter.get_total_flops()


def compare_steps(case: str, steps: int, pairs: int, machine: dict) -> None:
    runtime = Runtime.create(**machine)
    # Measured in each pair, because the speed of a shared machine drifts.
    rates: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dict.fromkeys((runtime.dtype, torch.float32))}

    def measure_rates() -> None:
        for dtype, measured in rates.items():
            measured.append(gemm_rate(dtype, runtime.device))

    found = compare(
        (plain_steps, dict(case=case, steps=steps, device=machine["device"])),
        (our_steps, dict(case=case, steps=steps, **machine)),
        pairs,
        steps,
        measure_rates,
    )
    print(f"step {case}, {CASES[case][3]} images, {runtime}: {found}")
    work = flops(case)
    for dtype, measured in rates.items():
        shares = [100 * work / ours / rate for ours, rate in zip(found.ours, measured)]
        print(
            f"    ours reaches {median_and_range(shares, ' %')} of this machine's "
            f"{str(dtype).removeprefix('torch.')} GEMM rate ({statistics.median(measured) / 1e9:.0f} GFLOP/s); "
            f"{work / 1e9:.0f} GFLOP a step",
            flush=True,
        )


def timed(command: list[str], cache: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def whole_runs(case: str, iterations: int, pairs: int, machine: dict) -> Comparison:
    """Runs of 10 images a class in 8 rounds."""
    arch, size, stem, _, classes = CASES[case]
    ipc = 10
    samples: list[list[tuple[float, float]]] = [[], []]
    with tempfile.TemporaryDirectory() as place:
        teacher = str(material.teacher(Path(place) / "teacher.pth", arch, classes, size, stem))
        init = str(material.images(Path(place) / "init", classes, ipc, size))
        length = ["--iterations", str(iterations), "--round-iterations", str(iterations // 8)]
        options = [text for name, value in machine.items() for text in (f"--{name}", value)]
        for pair in range(pairs):
            for number, command in enumerate(
                (
                    ["benchmarks.plain", init, teacher, f"{place}/plain{pair}", *length, "--device", machine["device"]],
                    [
                        "recover",
                        "--init-dir",
                        init,
                        "--teacher-path",
                        teacher,
                        "--syn-dir",
                        f"{place}/ours{pair}",
                        *length,
                        *options,
                    ],
                )
            ):
                with tempfile.TemporaryDirectory() as cache:
                    samples[number].append(timed([sys.executable, "-m", *command], cache))
    (plain, plain_peaks), (ours, our_peaks) = (zip(*side) for side in samples)
    return Comparison(plain, ours, max(plain_peaks), max(our_peaks))


def compare_whole(case: str, iterations: int, pairs: int, machine: dict) -> None:
    found, classes = whole_runs(case, iterations, pairs, machine), CASES[case][4]
    print(f"whole run {case}, {classes} classes of 10, {iterations} iterations in 8 rounds: {found}", flush=True)


def compare_early_late(case: str, iterations: int, pairs: int, machine: dict) -> None:
    ipc, rounds = 8, 8
    early_late = [index % ipc * (iterations // rounds) for index in range(CASES[case][3] // ipc * ipc)]
    work = dict(case=case, iterations=iterations, **machine)
    found = compare(
        (our_loop, dict(starts=[0] * len(early_late), **work)), (our_loop, dict(starts=early_late, **work)), pairs
    )
    saved = [100 * (1 - 1 / ratio) for ratio in found.ratios]
    bound = 100 * sum(early_late) / (len(early_late) * iterations)
    print(
        f"EarlyLate {case}, {len(early_late)} images, {iterations} iterations: all from the start "
        f"{seconds(statistics.median(found.plain))}, 8 rounds {seconds(statistics.median(found.ours))}: saves "
        f"{median_and_range(saved, ' %')} over {pairs} pairs; the bound is {bound:.2f} %",
        flush=True,
    )


def compare_methods(case: str, methods: list[str], steps: int, pairs: int, machine: dict) -> None:
    for method in methods:
        work = dict(case=case, steps=steps, **machine)
        found = compare((our_steps, work), (our_steps, dict(method=method, **work)), pairs, steps)
        print(
            f"step {case}, {CASES[case][3]} images, {Runtime.create(**machine)}: delt "
            f"{seconds(statistics.median(found.plain))}, {method} {seconds(statistics.median(found.ours))}: "
            f"{median_and_range([1 / ratio for ratio in found.ratios])} times over {pairs} pairs",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=("steps", "whole", "early-late", "methods"), default=["steps"])
    parser.add_argument("--case", nargs="+", choices=CASES, help="all for steps, resnet18-32 otherwise, if left out")
    parser.add_argument("--method", nargs="+", choices=MEASURED, default=["gvbsm", "edc"], help="for methods")
    parser.add_argument("--pairs", type=cli.positive, default=5)
    parser.add_argument("--steps", type=cli.positive, default=3, help="in a sample of steps")
    parser.add_argument("--iterations", type=cli.positive, default=1000, help="of a whole run, and for early-late")
    add_machine(parser)
    parser.add_argument(
        "--quick", action="store_true", help="32 pixels, few pairs, eager: under a minute, and less exact"
    )
    args = parser.parse_args()
    if args.quick:
        args.case, args.pairs, args.steps, args.compile = args.case or ["resnet18-32", "conv3-32"], 2, 1, "off"
        args.iterations = 16
    machine = machine_of(args)
    for case in args.case or list(CASES) if "steps" in args.work else []:
        compare_steps(case, args.steps, args.pairs, machine)
    for case in args.case or ["resnet18-32"] if "methods" in args.work else []:
        compare_methods(case, args.method, args.steps, args.pairs, machine)
    for work, measure in (("whole", compare_whole), ("early-late", compare_early_late)):
        for case in args.case or ["resnet18-32"] if work in args.work else []:
            measure(case, args.iterations, args.pairs, machine)


if __name__ == "__main__":
    main()
