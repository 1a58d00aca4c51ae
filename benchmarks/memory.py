"""python -m benchmarks.memory: does memory grow with the data set?

Lists, checks, ranks and selects a folder of many tiny images in many classes, and a hundredth of it; each step in a
process of its own, whose peak the system reports. What the larger folder takes more is what grows with the data.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image

from benchmarks import material
from utils import cli
from utils.data.image_folder import ImageFolder
from utils.run import entry

PIXELS = 16


def tiny_images(root: Path, classes: int, per_class: int) -> Path:
    """Hard links to a thousand different noisy PNGs: the stages cannot tell them from files of their own."""
    random = np.random.default_rng(0)
    pool = root.parent / "pool"
    pool.mkdir(exist_ok=True)
    for number in range(1000):
        Image.fromarray(random.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)).save(pool / f"{number}.png")
    for label in range(classes):
        folder = root / f"{label:04d}"
        folder.mkdir(parents=True)
        for number in range(per_class):
            os.link(pool / f"{(label * per_class + number) % 1000}.png", folder / f"image_{label:05d}_{number:07d}.png")
    return root


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds and peak resident MiB of `work` in a process of its own, reading workers not counted."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{work} failed")
    return time.monotonic() - started, usage.ru_maxrss / 1024


def stage(name: str, *words: object) -> Callable[[], None]:
    def work() -> None:
        sys.argv = [name, *map(str, words)]
        entry.run(importlib.import_module(f"{name}.__main__").main)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=cli.positive, default=100_000)
    parser.add_argument("--classes", type=cli.positive, default=1000)
    parser.add_argument("--quick", action="store_true", help="2,000 images of 20 classes")
    args = parser.parse_args()
    if args.quick:
        args.images, args.classes = 2000, 20
    importlib.import_module("ranking.__main__")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        teacher = root / "teacher.pth"
        # In a process of its own, too: one that has computed with several threads cannot be forked.
        measured(lambda: material.teacher(teacher, "conv3", args.classes, PIXELS, "cifar"))
        found = {}
        for per_class in (max(args.images // args.classes // 100, 1), args.images // args.classes):
            folder = tiny_images(root / f"{per_class} a class", args.classes, per_class)
            common = [
                "--train-dir",
                folder,
                "--teacher-path",
                teacher,
                "--ranking-file",
                root / f"{per_class}.csv",
                "--ipc",
                1,
                "--device",
                "cpu",
                "--workers",
                0,
            ]
            found[args.classes * per_class] = {
                "listing": measured(lambda: ImageFolder(folder, "it")),
                "checking": measured(lambda: ImageFolder(folder, "it").check()),
                "ranking": measured(stage("ranking", *common)),
                "selecting": measured(stage("ranking", *common, "--output-dir", root / f"{per_class} selected")),
            }
        (few, small), (many, large) = found.items()
        print(f"| {args.classes:,} classes | images/s | peak MB, {few:,} images | peak MB, {many:,} images |")
        print("|---|---|---|---|")
        for step, (seconds, peak) in large.items():
            print(f"| {step} | {many / seconds:,.0f} | {small[step][1]:.0f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
