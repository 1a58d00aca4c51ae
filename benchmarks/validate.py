"""python -m benchmarks.validate: the training of a student, plain against ours.

One epoch of training and one evaluation are measured, each by itself, and added up to a whole student: what published
code evaluates (every tenth epoch of the last fifth: 6 times in 300) and what validate does by default.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Callable

from benchmarks import material
from benchmarks.pairs import add_machine, compare, machine_of, seconds, spread
from benchmarks.plain import PlainStudent
from utils.checkpoints import load_teacher
from utils.datasets import IMAGENET_MEAN, IMAGENET_STD
from utils.evaluate import accuracy
from utils.loader import TestImages
from utils.runtime import Runtime
from validate.augment import Augmentation, Views
from validate.protocols import PROTOCOLS, resolve
from validate.train import Stream, labelled, train

SIZE, CLASSES, EPOCHS = 32, 10, 300
PLAIN_EVALUATIONS, OUR_EVALUATIONS = 6, 3
FACTS = (IMAGENET_MEAN, IMAGENET_STD)


def plain_student(place: str, arch: str, batch_size: int, work: str, repeat: int, device: str) -> Callable[[], None]:
    teacher = load_teacher(arch, f"{place}/teacher.pth").model
    student = PlainStudent(material.network(arch, CLASSES, SIZE, "cifar"), teacher, f"{place}/syn", f"{place}/val", SIZE,
                           *FACTS, batch_size, device)
    return student.evaluate if work == "evaluation" else lambda: [student.epoch() for _ in range(repeat)]


def our_student(place: str, arch: str, batch_size: int, work: str, repeat: int, device: str, precision: str,
                compile: str) -> Callable[[], None]:
    runtime = Runtime.create(device, precision, compile)
    folder = material.loaded(f"{place}/syn")
    flags = {**PROTOCOLS["delt"], "epochs": repeat, "batch_size": batch_size}
    protocol = resolve(flags, arch, CLASSES, len(folder) // CLASSES, len(folder), SIZE, evaluations=0)
    views = Views(folder, Augmentation(SIZE, protocol.rand_augment, protocol.shuffle_patches, protocol.min_scale,
                                       protocol.max_scale, protocol.flip, IMAGENET_MEAN))
    # Compiled if a whole student's steps repay it, however few are measured here.
    whole = runtime.compiles(EPOCHS * views.passes(batch_size, EPOCHS).steps)
    runtime = Runtime(runtime.device, runtime.precision, "on" if whole else "off")
    student = runtime.place(material.network(arch, CLASSES, SIZE, "cifar"))
    if work == "evaluation":
        test = TestImages(material.loaded(f"{place}/val"), SIZE)
        return lambda: accuracy(student, test, runtime, *FACTS)
    teacher = runtime.frozen(load_teacher(arch, f"{place}/teacher.pth").model)
    stream = Stream(views, protocol, 0, CLASSES, runtime, *FACTS)
    return lambda: train(student, partial(labelled, stream, teacher), stream, None, "")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="of teacher and student; 32 pixels, 10 classes")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--test-images", type=int, default=1000, help="evaluated in a sample; a whole student's are 10,000")
    parser.add_argument("--epochs", type=int, default=2, help="in a sample of training")
    parser.add_argument("--pairs", type=int, default=5)
    add_machine(parser)
    parser.add_argument("--quick", action="store_true", help="conv3, few pairs, eager: under a minute, and less exact")
    args = parser.parse_args()
    if args.quick:
        args.arch, args.pairs, args.test_images, args.compile = "conv3", 2, 500, "off"
    machine = machine_of(args)
    with tempfile.TemporaryDirectory() as place:
        material.teacher(Path(place) / "teacher.pth", args.arch, CLASSES, SIZE, "cifar")
        material.images(Path(place) / "syn", CLASSES, args.ipc, SIZE)
        material.images(Path(place) / "val", CLASSES, args.test_images // CLASSES, SIZE, seed=1)
        found = {}
        for work, repeat in (("training", args.epochs), ("evaluation", 1)):
            side = dict(place=place, arch=args.arch, batch_size=args.batch_size, work=work, repeat=repeat,
                        device=machine["device"])
            found[work] = compare((plain_student, side), (our_student, side | machine), args.pairs, repeat)
            amount = f"{args.ipc * CLASSES} images, an epoch" if work == "training" else f"{args.test_images} images"
            print(f"{work} {args.arch}, {amount}: {found[work]}", flush=True)
    scale = 10000 / args.test_images
    plain, ours = ([EPOCHS * a + evaluations * scale * b for a, b in zip(getattr(found["training"], side),
                                                                         getattr(found["evaluation"], side))]
                   for side, evaluations in (("plain", PLAIN_EVALUATIONS), ("ours", OUR_EVALUATIONS)))
    print(f"student {args.arch}, {EPOCHS} epochs with {PLAIN_EVALUATIONS} and {OUR_EVALUATIONS} evaluations of 10,000 images, "
          f"added up: plain {seconds(statistics.median(plain))}, ours {seconds(statistics.median(ours))}, ratio "
          f"{spread([a / b for a, b in zip(plain, ours)])}")


if __name__ == "__main__":
    main()
