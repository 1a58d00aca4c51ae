"""python -m benchmarks.statistics: collecting statistics against a plain forward pass over the same images.

Both read and augment the images alike, and their networks are prepared alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Callable

import torch

from benchmarks import material
from benchmarks.pairs import add_machine, compare, machine_of, median_and_range, seconds, settled
from squeeze.augment import batches_of
from squeeze.collect import What
from squeeze.statistics import BATCH_SIZE, CROP_PADDING, LARGE_PATCH, PATCH, batch_keys, collector
from utils import cli
from utils.data.datasets import SMALL_SIZE
from utils.data.geometry import Geometry
from utils.nets import statistics
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run.device import Runtime

CLASSES = 10
CIFAR_STEPS = 782  # of a pass over CIFAR-10: what a compilation is weighed against
PASSES = {"forward": None, "all images": False, "per class": True}


def a_pass(place: str, arch: str, size: int, work: str, **machine: str) -> Callable[[], None]:
    """One pass over the images in the folder `place`; `work` of PASSES."""
    runtime = settled(Runtime.create(**machine), CIFAR_STEPS)
    folder = material.loaded(place)
    batches = batches_of(folder, size, CROP_PADDING, runtime.device)
    teacher = _teacher(arch, size, CLASSES)
    if PASSES[work] is None:
        network = runtime.compiled(frozen(teacher.network, runtime), CIFAR_STEPS)

        @torch.no_grad()
        def step(images: torch.Tensor, labels: torch.Tensor) -> None:
            with runtime.autocast():
                network(teacher.geometry.normalise(images, runtime.device))

    else:
        images = (CIFAR_STEPS * BATCH_SIZE, BATCH_SIZE)
        step, _ = collector(teacher, _what(teacher, PASSES[work]), images, runtime)

    def work_through() -> None:
        for images, labels in batches.batches(batch_keys(len(folder), BATCH_SIZE, ("benchmark",))):
            step(images, labels)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()

    return work_through


def targets(path: Path, teacher: Teacher) -> Path:
    """A file of what noise is to a teacher, of each class too."""
    runtime, geometry = Runtime(torch.device("cpu"), "fp32", "off"), teacher.geometry
    count = 2 * geometry.num_classes
    step, totals = collector(teacher, _what(teacher, True), (count, BATCH_SIZE), runtime)
    images = torch.randint(256, (count, 3, geometry.input_size, geometry.input_size), dtype=torch.uint8)
    labels = torch.arange(count) % geometry.num_classes
    for part in range(0, count, BATCH_SIZE):
        step(images[part : part + BATCH_SIZE], labels[part : part + BATCH_SIZE])
    facts = {name: list(getattr(geometry, name)) for name in ("mean", "std", "classes")}
    facts |= dict(teacher=teacher.sha256, arch=teacher.arch, input_size=geometry.input_size)
    facts |= dict(patch=totals.what.patch, per_class=True)
    statistics.write(path, totals.tensors(), facts, totals.layers, 0.0)
    return path


def _teacher(arch: str, size: int, classes: int) -> Teacher:
    geometry: Geometry = material.geometry(classes, size, "cifar" if size <= SMALL_SIZE else "imagenet")
    return Teacher(material.network(arch, classes, size, geometry.stem), arch, geometry, "")


def _what(teacher: Teacher, per_class: bool) -> What:
    return What(PATCH if teacher.geometry.input_size <= SMALL_SIZE else LARGE_PATCH, per_class)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=__doc__)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=cli.positive, default=32, help="pixels")
    parser.add_argument("--images", type=cli.positive, default=640, help="in a sample")
    parser.add_argument("--pairs", type=cli.positive, default=5)
    add_machine(parser)
    parser.add_argument("--quick", action="store_true", help="conv3, few pairs, eager: under a minute, and less exact")
    args = parser.parse_args()
    if args.quick:
        args.arch, args.pairs, args.compile = "conv3", 2, "off"
    machine = machine_of(args)
    with tempfile.TemporaryDirectory() as place:
        images = args.images // CLASSES * CLASSES
        material.images(Path(place) / "train", CLASSES, images // CLASSES, args.size)
        side = dict(place=f"{place}/train", arch=args.arch, size=args.size, **machine)
        for work in list(PASSES)[1:]:
            found = compare((a_pass, side | {"work": "forward"}), (a_pass, side | {"work": work}), args.pairs)
            plain, ours = (median(values) for values in (found.plain, found.ours))
            print(
                f"statistics of {work}, {args.arch}, {images} images of {args.size} px: forward {seconds(plain)}, "
                f"collecting {seconds(ours)}: {median_and_range([1 / ratio for ratio in found.ratios])} times over "
                f"{len(found.ours)} pairs",
                flush=True,
            )


if __name__ == "__main__":
    main()
