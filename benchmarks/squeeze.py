"""python -m benchmarks.squeeze: an epoch of training a teacher, plain against ours."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Callable

from benchmarks import material
from benchmarks.pairs import Comparison, add_machine, compare, machine_of, settled
from benchmarks.plain import PlainTeacher
from squeeze.augment import batches_of
from squeeze.train import Recipe, train
from utils import cli
from utils.fit.loop import Training
from utils.run.device import Runtime

SIZE, CLASSES, BATCH, PADDING = 32, 10, 128, 4
GEOMETRY = material.geometry(CLASSES, SIZE, "cifar")
CIFAR_STEPS = 50 * 390  # of the default recipe on CIFAR-10: what a compilation is weighed against


def plain_epoch(place: str, arch: str, device: str) -> Callable[[], None]:
    network = material.network(arch, CLASSES, SIZE, "cifar")
    return PlainTeacher(network, place, GEOMETRY, BATCH, device).epoch


def our_epoch(place: str, arch: str, **machine: str) -> Callable[[], None]:
    runtime = settled(Runtime.create(**machine), CIFAR_STEPS)
    batches = batches_of(material.loaded(place), SIZE, PADDING, runtime.device)
    model = runtime.place(material.network(arch, CLASSES, SIZE, "cifar"))
    recipe = Recipe(
        epochs=1,
        batch_size=BATCH,
        lr=0.1,
        lr_schedule="cosine",
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.0,
        crop_padding=PADDING,
        evaluations=0,
        seed=0,
    )
    training = Training("squeeze", batches.schedule(BATCH, 1), runtime, GEOMETRY)
    return lambda: train(model, batches, recipe, training)


def epochs(arch: str, images: int, pairs: int, machine: dict) -> Comparison:
    """Epochs of so many images, a multiple of the classes."""
    with tempfile.TemporaryDirectory() as place:
        material.images(Path(place) / "train", CLASSES, images // CLASSES, SIZE)
        side = dict(place=f"{place}/train", arch=arch, device=machine["device"])
        return compare((plain_epoch, side), (our_epoch, side | machine), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.squeeze", description=__doc__)
    parser.add_argument("--arch", default="resnet18", help="32 pixels, 10 classes")
    parser.add_argument("--images", type=cli.positive, default=640, help="in a sample; an epoch of CIFAR-10 has 50,000")
    parser.add_argument("--pairs", type=cli.positive, default=5)
    add_machine(parser)
    parser.add_argument("--quick", action="store_true", help="conv3, few pairs, eager: under a minute, and less exact")
    args = parser.parse_args()
    if args.quick:
        args.arch, args.pairs, args.compile = "conv3", 2, "off"
    images = args.images // CLASSES * CLASSES
    found = epochs(args.arch, images, args.pairs, machine_of(args))
    print(f"squeeze {args.arch}, {images} images in batches of {BATCH}: {found}")


if __name__ == "__main__":
    main()
