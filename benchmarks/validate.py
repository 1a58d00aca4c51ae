"""python -m benchmarks.validate: the training of a student, plain against ours.

One epoch of training and one evaluation are measured, each by itself, and added up to a whole student: what published
code evaluates (every tenth epoch of the last fifth: 6 times in 300) and what validate does by default.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Iterator

from benchmarks import material
from benchmarks.pairs import Comparison, add_machine, compare, machine_of, median_and_range, seconds, settled
from benchmarks.plain import PlainStudent
from utils import cli
from utils.data.loader import EvalBatches
from utils.fit.evaluate import accuracy
from utils.fit.loop import Training
from utils.nets.teacher import load_teacher
from utils.run.device import Runtime
from validate.augment import Augmentation, Views
from validate.protocols import PROTOCOLS, SetFacts, resolve
from validate.stream import Stream
from validate.targets import Teachers
from validate.train import train

SIZE, CLASSES, EPOCHS = 32, 10, 300
PLAIN_EVALUATIONS, OUR_EVALUATIONS = 6, 3
GEOMETRY = material.geometry(CLASSES, SIZE, "cifar")


def plain_student(place: str, arch: str, batch_size: int, work: str, repeat: int, machine: dict) -> Callable[[], None]:
    teacher = load_teacher(arch, f"{place}/teacher.pth").network
    network = material.network(arch, CLASSES, SIZE, "cifar")
    student = PlainStudent(network, teacher, (f"{place}/syn", f"{place}/val"), GEOMETRY, batch_size, machine["device"])
    return student.evaluate if work == "evaluation" else lambda: [student.epoch() for _ in range(repeat)]


def our_student(place: str, arch: str, batch_size: int, work: str, repeat: int, machine: dict) -> Callable[[], None]:
    runtime = Runtime.create(**machine)
    folder = material.loaded(f"{place}/syn")
    settings = {**PROTOCOLS["delt"], "epochs": repeat, "batch_size": batch_size}
    protocol = resolve(settings, arch, SetFacts(CLASSES, len(folder) // CLASSES, len(folder), SIZE), evaluations=0)
    views = Views(folder, Augmentation(protocol, GEOMETRY))
    # Compiled if a whole student's steps repay it, however few are measured here.
    runtime = settled(runtime, views.schedule(batch_size, EPOCHS).steps)
    student = runtime.place(material.network(arch, CLASSES, SIZE, "cifar"))
    if work == "evaluation":
        test = EvalBatches(material.loaded(f"{place}/val"), SIZE)
        return lambda: accuracy(student, test, GEOMETRY, runtime)
    teachers = Teachers.of([load_teacher(arch, f"{place}/teacher.pth")], runtime)
    stream = Stream(views, protocol, 0, GEOMETRY, runtime)
    training = Training("", stream.schedule, runtime, GEOMETRY)
    return lambda: train(student, partial(teachers.labelled, stream), stream, training)


@dataclass(frozen=True)
class Amount:
    """How much is measured in a sample."""

    ipc: int = 10
    batch_size: int = 50
    test_images: int = 1000  # a whole student's are 10,000
    epochs: int = 2
    pairs: int = 5


def parts(arch: str, amount: Amount, machine: dict) -> Iterator[tuple[str, Comparison]]:
    """An epoch of training, and one evaluation."""
    with tempfile.TemporaryDirectory() as place:
        material.teacher(Path(place) / "teacher.pth", arch, CLASSES, SIZE, "cifar")
        material.images(Path(place) / "syn", CLASSES, amount.ipc, SIZE)
        material.images(Path(place) / "val", CLASSES, amount.test_images // CLASSES, SIZE, seed=1)
        for work, repeat in (("training", amount.epochs), ("evaluation", 1)):
            side = dict(place=place, arch=arch, batch_size=amount.batch_size, work=work, repeat=repeat, machine=machine)
            yield work, compare((plain_student, side), (our_student, side), amount.pairs, repeat)


def added_up(training: Comparison, evaluation: Comparison, test_images: int) -> Comparison:
    """Whole students, of EPOCHS epochs and evaluations of 10,000 images."""
    scale = 10000 / test_images
    plain, ours = (
        [EPOCHS * a + evaluations * scale * b for a, b in zip(getattr(training, side), getattr(evaluation, side))]
        for side, evaluations in (("plain", PLAIN_EVALUATIONS), ("ours", OUR_EVALUATIONS))
    )
    peaks = (max(getattr(found, side) for found in (training, evaluation)) for side in ("plain_peak", "ours_peak"))
    return Comparison(plain, ours, *peaks)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet18", help="of teacher and student; 32 pixels, 10 classes")
    parser.add_argument("--ipc", type=cli.positive, default=10)
    parser.add_argument("--batch-size", type=cli.positive, default=50)
    parser.add_argument(
        "--test-images", type=cli.positive, default=1000, help="evaluated in a sample; a whole student's are 10,000"
    )
    parser.add_argument("--epochs", type=cli.positive, default=2, help="in a sample of training")
    parser.add_argument("--pairs", type=cli.positive, default=5)
    add_machine(parser)
    parser.add_argument("--quick", action="store_true", help="conv3, few pairs, eager: under a minute, and less exact")
    args = parser.parse_args()
    if args.quick:
        args.arch, args.pairs, args.test_images, args.compile = "conv3", 2, 500, "off"
    amount = Amount(args.ipc, args.batch_size, args.test_images, args.epochs, args.pairs)
    found = {}
    for work, comparison in parts(args.arch, amount, machine_of(args)):
        found[work] = comparison
        what = f"{args.ipc * CLASSES} images, an epoch" if work == "training" else f"{args.test_images} images"
        print(f"{work} {args.arch}, {what}: {comparison}", flush=True)
    whole = added_up(found["training"], found["evaluation"], args.test_images)
    plain, ours = whole.plain, whole.ours
    print(
        f"student {args.arch}, {EPOCHS} epochs with {PLAIN_EVALUATIONS} and {OUR_EVALUATIONS} evaluations of 10,000 "
        f"images, added up: plain {seconds(statistics.median(plain))}, ours {seconds(statistics.median(ours))}, ratio "
        f"{median_and_range(whole.ratios)}"
    )


if __name__ == "__main__":
    main()
