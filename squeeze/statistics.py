"""python -m squeeze.statistics: what a teacher's layers get of the real images, for methods that match it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import torch

from squeeze import source
from squeeze.augment import batches_of
from squeeze.collect import Measured, Totals, What
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data.class_folders import folder_for
from utils.data.datasets import SMALL_SIZE
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.nets import class_order, statistics
from utils.nets.class_order import Answers
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.device import Runtime, transfer
from utils.run.distributed import rank_from_environment
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import beside, check_output, locked
from utils.run.progress import progress
from utils.run.resume import State
from utils.run.seeds import generator

BATCH_SIZE = 64  # G-VBSM's code
CROP_PADDING = 4  # pixels, of the view, where the teacher does not say with how many it was trained: squeeze's default
PATCH, LARGE_PATCH = 4, 16  # pixels, up to SMALL_SIZE and above: G-VBSM's code for CIFAR and for ImageNet


@dataclass(frozen=True)
class Job:
    """The command line."""

    train_dir: str
    output: Path
    patch: int | None
    per_class: bool
    seed: int
    save_every: float  # minutes
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags


def parse() -> Job:
    parser = cli.Parser(
        "squeeze.statistics",
        "One pass of the real images, seen as squeeze sees them (padded as the teacher's checkpoint says), through a "
        "teacher; write the means and variances of what its convolutions get, which some methods of recover match.",
    )
    source.add_flags(parser)
    parser.add_argument("--per-class", action="store_true", help="of each class too, and of BatchNorms (EDC, WMDD)")
    parser.add_argument(
        "--patch",
        type=cli.positive,
        metavar="PIXELS",
        help=f"side of the patches of a map; {PATCH} for inputs up to {SMALL_SIZE} pixels, {LARGE_PATCH} above, if not "
        "given",
    )
    cli.add_save_every(parser, "the pass")
    cli.add_teacher(parser)
    cli.add_common(parser, f"images whose statistics are taken together; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    return cli.group(args, Job)


def main() -> None:
    job = parse()
    if rank_from_environment()[0]:
        print("statistics: rank 0 collects them")
        return
    check_output(job.output, job.train_dir)
    runtime, workers = job.machine.runtime(), job.machine.workers
    [teacher] = job.teacher.load(job.geometry, job.train_dir, "--train-dir")
    if not statistics.measurable(teacher.network):
        raise UserError(f"{teacher.arch}: has neither convolutions nor BatchNorms, whose inputs could be measured")
    folder = folder_for(teacher.geometry, job.train_dir, "--train-dir")
    with locked(job.output):
        batch_size = job.machine.batch_size_for(teacher, BATCH_SIZE, job.output, runtime)
        small = teacher.geometry.input_size <= SMALL_SIZE
        what = What(job.patch or (PATCH if small else LARGE_PATCH), job.per_class)
        settings = settings_of(job, teacher, folder, what, runtime) | {"batch_size": batch_size}
        if not job.overwrite and statistics.is_written(job.output, settings):
            state_of(job, settings).remove()
            print(f"statistics: {job.output} is complete")
            return
        statistics.check_seconds(job.output)
        if not job.overwrite:
            state_of(job, settings).require_own()
        folder.load(workers, alone=True)  # the other ranks have ended
        print(
            f"statistics: {len(folder):,} images of {len(folder.classes)} classes by {teacher.arch} "
            f"({teacher.geometry.input_size} px), {runtime}"
        )
        with explain_out_of_memory(batch_size):
            collect(job, teacher, folder, what, settings, runtime)


def settings_of(job: Job, teacher: Teacher, folder: ImageFolder, what: What, runtime: Runtime) -> dict[str, Any]:
    """What decides the values: a file of other settings is another run's."""
    return {
        **source.identity(folder, teacher),
        **({} if what.per_class else {"format": statistics.FORMAT}),
        "crop_padding": padding_of(teacher) if teacher.geometry.input_size <= SMALL_SIZE else None,
        "patch": what.patch,
        "per_class": what.per_class,
        "norms": False,  # a flag of earlier versions, whose files and interrupted passes are the same run
        "seed": job.seed,
        **runtime.identity,
    }


def padding_of(teacher: Teacher) -> int:
    """Pixels of the views of small images."""
    return CROP_PADDING if teacher.crop_padding is None else teacher.crop_padding


def state_of(job: Job, settings: dict[str, Any]) -> State:
    """Where the pass is saved."""
    return State(beside(job.output, "state"), settings, job.save_every)


def collect(
    job: Job, teacher: Teacher, folder: ImageFolder, what: What, settings: dict[str, Any], runtime: Runtime
) -> None:
    """The pass, from where the state of an interrupted one has it, and the file."""
    batch_size = settings["batch_size"]
    step, totals = collector(teacher, what, (len(folder), batch_size), runtime)
    size = teacher.geometry.input_size
    batches = batches_of(folder, size, padding_of(teacher), runtime.device, job.machine.workers)
    with state_of(job, settings) as state:
        saved = state.restore({"totals": totals})
        start = saved["batch"] if saved else 0
        with progress(
            total=len(folder), initial=min(start * batch_size, len(folder)), desc="statistics", unit="img"
        ) as bar:
            keys = list(batch_keys(len(folder), batch_size, (job.seed, "statistics")))
            for number, (images, labels) in enumerate(batches.batches(keys[start:]), start):
                step(images, labels)
                bar.update(len(labels))
                state.save_if_due(lambda: {"totals": totals.state_dict(), "batch": number + 1})
        judge(totals, folder, teacher, runtime)
        save(job, totals, settings, state.seconds)


def collector(
    teacher: Teacher, what: What, images: tuple[int, int], runtime: Runtime
) -> tuple[Callable[[torch.Tensor, torch.Tensor], None], Totals]:
    """What adds a batch, uint8 (b, 3, S, S) and labels (b,), to the totals, and those. It does not wait for the device.

    `images`: of all batches, and of one. The teacher's network is taken over: it is as fast as without, but for the
    measuring.
    """
    geometry, device = teacher.geometry, runtime.device
    kinds = statistics.measurable(teacher.network)  # before some are replaced by faster ones
    measured = Measured(frozen(teacher.network, runtime, teacher), kinds, what).eval()
    with torch.no_grad(), runtime.autocast():
        blank = torch.zeros(2, 3, geometry.input_size, geometry.input_size, dtype=torch.uint8)
        layers = measured.layers(geometry.normalise(blank, device))
    totals = Totals(layers, what, images[0], geometry.num_classes, device)
    forward = runtime.compiled(measured, -(-images[0] // images[1]))

    @torch.no_grad()
    def step(batch: torch.Tensor, labels: torch.Tensor) -> None:
        with runtime.autocast():
            logits, row = forward(geometry.normalise(batch, device))
        totals.add(row, transfer(labels, device), logits.argmax(1))

    return step, totals


def batch_keys(images: int, batch_size: int, stream: tuple[object, ...]) -> Iterator[tuple[tuple, list[int]]]:
    """(stream name, indices) of each batch of one pass in a random order; a last one of a single image too."""
    order = torch.randperm(images, generator=generator(*stream))
    for number, indices in enumerate(order.split(batch_size)):
        yield (*stream, number), indices.tolist()


def judge(totals: Totals, folder: ImageFolder, teacher: Teacher, runtime: Runtime) -> None:
    """Raises UserError where a value is not a number, or the order of the classes cannot be the teacher's."""
    if not totals.total.isfinite().all():
        raise UserError(
            f"{teacher.arch}: a layer gets NaN or infinity (precision {runtime.precision}); give --precision fp32, or "
            "another teacher"
        )
    answers = Answers(totals.answers.cpu())
    class_order.check(answers, folder.classes, f"statistics: {teacher.arch}", teacher.order)


def save(job: Job, totals: Totals, settings: dict[str, Any], seconds: float) -> None:
    statistics.write(job.output, totals.tensors(), settings, totals.layers, seconds)
    kinds = [layer.kind for layer in totals.layers if totals.what.has(layer.kind)]
    print(
        f"statistics: {kinds.count(statistics.CONVOLUTION)} convolutions"
        f"{f' and {kinds.count(statistics.BATCHNORM)} BatchNorms' if statistics.BATCHNORM in kinds else ''}"
        f"{' of all images and of each class' if job.per_class else ''}; {seconds:.0f} s; {job.output}"
    )


if __name__ == "__main__":
    entry.run(main)
