"""python -m squeeze.barycenters: a few points that stand for the features of each class, for the method wmdd."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from squeeze import source
from squeeze.transport import ROUNDS, barycenter, pot
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data.class_folders import folder_for
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.nets import judge, statistics
from utils.nets.features import FeatureReader, extractor
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.device import Runtime
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import beside, check_output, locked
from utils.run.packages import how_to_install
from utils.run.seeds import generator
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch

BATCH_SIZE = 256
KIND = "barycenters"


@dataclass(frozen=True)
class Job:
    """The command line."""

    train_dir: str
    output: Path
    ipc: int
    learn_weights: bool
    seed: int
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags

    @property
    def parts(self) -> Path:
        return beside(self.output, "parts")


def parse() -> Job:
    parser = cli.Parser(
        "squeeze.barycenters",
        "For each class the Wasserstein barycenter of its images' penultimate features, of --ipc points (WMDD); "
        f"needs the package POT ({how_to_install('POT')}).",
    )
    source.add_flags(parser)
    parser.add_argument("--ipc", type=cli.positive, default=10, help="points per class, one for each image")
    parser.add_argument(
        "--learn-weights", action="store_true", help="learn the points' weights too; recover gives them to the images"
    )
    cli.add_teacher(parser)
    cli.add_common(parser, f"images per batch; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    return cli.group(args, Job)


def main() -> None:
    job = parse()
    pot()  # for its error, before any work
    check_output(job.output, job.train_dir)
    runtime, workers = job.machine.runtime(), job.machine.workers
    [teacher] = job.teacher.load(job.geometry, job.train_dir, "--train-dir")
    folder = folder_for(teacher.geometry, job.train_dir, "--train-dir")
    with locked(job.output):
        batch_size = job.machine.batch_size_for(teacher, BATCH_SIZE, job.output, runtime)
        settings = identity(job, folder, teacher, runtime, batch_size)
        if not job.overwrite and statistics.is_written(job.output, settings):
            SharedWork.discard(job.parts)
            print(f"barycenters: {job.output} is complete")
            return
        statistics.check_seconds(job.output)
        folder.check(workers)
        print(f"barycenters: {len(folder):,} images by {teacher.arch} ({teacher.geometry.input_size} px), {runtime}")
        judge.by_sample("barycenters", teacher, folder, runtime, workers)
        features = FeatureReader(
            frozen(extractor(teacher.network), runtime, teacher),
            teacher.geometry,
            runtime,
            batch_size,
            workers,
            may_split=job.machine.finds_batch_size,
        )
        with explain_out_of_memory(batch_size):
            records = find(job, features, folder, settings)
        if records is None:
            print("barycenters: this process has done its classes; the file follows when all are done")
            return
        write(job, records, settings)


def identity(job: Job, folder: ImageFolder, teacher: Teacher, runtime: Runtime, batch_size: int) -> dict[str, Any]:
    """Everything that decides the points: a file of other settings is another run's."""
    return {
        "kind": KIND,
        **source.identity(folder, teacher),
        "ipc": job.ipc,
        "learn_weights": job.learn_weights,
        # A file without them may be of rounds that ended early.
        **({"rounds": ROUNDS} if job.learn_weights else {}),
        "seed": job.seed,
        "batch_size": batch_size,
        **runtime.identity,
    }


def find(job: Job, reader: FeatureReader, folder: ImageFolder, settings: dict[str, Any]) -> list[dict] | None:
    """The points and weights of all classes, as `packed` has them; one class's features are held at a time.

    Shared with other processes; None where they have not done their classes yet.
    """

    def is_done(label: int) -> bool:
        return work.record(label) is not None or (not job.overwrite and job.output.exists())

    with SharedWork(job.parts, settings, len(folder.classes), is_done) as work:
        watch = Stopwatch()
        for label, features in reader.by_class(folder, "barycenters", work.take()):
            name = folder.classes[label]
            stream = generator(job.seed, "barycenter", name)
            start = torch.randn(job.ipc, features.shape[1], generator=stream, dtype=torch.float64)
            points, weights = barycenter(features.double().numpy(), start.numpy(), job.learn_weights)
            found = {"points": torch.from_numpy(points).float(), "weights": torch.from_numpy(weights).float()}
            work.save(label, {"tensors": packed(found), "seconds": watch.lap()})
        return work.records()


def write(job: Job, records: list[dict], settings: dict[str, Any]) -> None:
    """Put the classes together."""
    classes = [unpacked(record["tensors"]) for record in records]
    found = {name: torch.stack([entry[name] for entry in classes]) for name in ("points", "weights")}
    statistics.write(job.output, found, settings, [], sum(record["seconds"] for record in records))
    SharedWork.discard(job.parts)
    spread = f", weights from {found['weights'].min():.2g} to {found['weights'].max():.2g}" if job.learn_weights else ""
    print(f"barycenters: {job.ipc} points of each of {len(classes)} classes in {job.output}{spread}")


def packed(found: dict[str, torch.Tensor]) -> str:
    """Tensors as a text, for a record of shared work."""
    return base64.b64encode(safetensors.torch.save(found)).decode()


def unpacked(text: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(base64.b64decode(text))


if __name__ == "__main__":
    entry.run(main)
