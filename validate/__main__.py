"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn

from utils import cli
from utils.data import manifest
from utils.data.geometry import Geometry, plain
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.fit.batch_size import find_batch_size, try_evaluation, try_training_step
from utils.fit.loop import Training
from utils.nets import class_order, models
from utils.nets.class_order import Answers
from utils.run import distributed, entry
from utils.run.device import Runtime, versions
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output, locked
from utils.run.resume import JointState
from utils.run.seeds import seeded
from validate.augment import Augmentation, Views
from validate.flags import Job, parse
from validate.labels import StoredLabels, Writer
from validate.protocols import Protocol, SetFacts, resolve
from validate.results import Result, Run, file_name, summary
from validate.stream import Stream
from validate.targets import Labelled, Teachers, accumulated, hard_labelled, image_weights
from validate.train import train


@dataclass(frozen=True)
class Experiment:
    """What all students of a command have in common."""

    job: Job
    runtime: Runtime
    teachers: Teachers
    stored: dict[int, StoredLabels]  # by seed; empty unless labels are loaded
    test: EvalBatches
    judged: set[int] = field(default_factory=set)  # the teachers whose order of classes was checked

    @property
    def geometry(self) -> Geometry:
        return self.teachers.geometry

    def student(self, arch: str) -> nn.Module:
        """A student with random weights. Its stem is by the input size, whatever the teacher's is."""
        size = self.geometry.input_size
        return models.build(arch, self.geometry.num_classes, size, self.job.geometry.stem or models.default_stem(size))

    def check_class_order(self) -> None:
        """Judge the order of the classes of teachers that do not say it themselves, once, by the test images.

        Raises UserError where it cannot be theirs.
        """
        teachers = self.teachers
        for number, (network, geometry) in enumerate(zip(teachers.networks, teachers.geometries)):
            who, order = f"validate: {teachers.archs[number]}", teachers.orders[number]
            if order is not None and number not in self.judged:
                answers = Answers.to(self.test, network, geometry, self.runtime)
                class_order.check(answers, self.test.folder.classes, who, order)
                self.judged.add(number)

    @property
    def kept_classes(self) -> int | None:
        """How many classes' probabilities stored labels have; None where the labels are not stored."""
        if self.stored:
            return next(iter(self.stored.values())).kept
        classes = self.geometry.num_classes
        return min(self.job.labels.top_k or classes, classes) if self.job.labels.save_labels else None


def main() -> None:
    job = parse()
    runtime = job.machine.runtime()
    with distributed.process_group(runtime.device):
        validate(job, runtime)


def validate(job: Job, runtime: Runtime) -> None:
    """Measure each student on each set under each protocol; all ranks together."""
    require_one_process(job)
    load_labels, workers = job.labels.load_labels, job.machine.workers
    stored = {seed: StoredLabels(load_labels, seed) for seed in job.seeds} if load_labels else {}
    teachers = teachers_of(job, runtime, stored)
    geometry = teachers.geometry
    job = job.at_size(geometry.input_size)
    test_folder = cli.folder_for(geometry, job.val_dir, "--val-dir")
    sets = [set_of(path, test_folder, job.classes_by) for path in job.sets]
    check_output(job.output_dir / "results.csv")
    if job.ipc:
        sets = [folder.first(job.ipc, "leave out --ipc to take all that are there") for folder in sets]
    require_same_size(sets)
    test = EvalBatches(test_folder, geometry.input_size, workers=workers)
    experiment = Experiment(job, runtime, teachers, stored, test)
    archs = job.student_arch or teachers.archs[:1]
    for arch in archs:
        experiment.student(arch)  # for its errors, before any student is trained
    for settings in job.protocols.values():
        Augmentation(protocol_of(experiment, settings, archs[0], sets[0]), geometry)  # for its errors, too
        if settings["image_weights"] == "on":
            for folder in sets:
                image_weights(folder)
    for folder in [*sets, test_folder]:
        folder.load(workers)

    for title, settings in job.protocols.items():
        for folder, method in zip(sets, job.sets.values()):
            for arch in archs:
                protocol = protocol_of(experiment, settings, arch, folder)
                name, protocol = fitted(experiment, title, protocol, arch, method)
                run = make_run(experiment, name, protocol, arch, method, folder)
                with explain_out_of_memory(protocol.batch_size, 2):
                    measure(experiment, run, protocol, folder)


def require_one_process(job: Job) -> None:
    """Raises UserError where several processes would divide the batches whose statistics the labels depend on."""
    for title, settings in job.protocols.items():
        by_batch = settings["labels"] == "soft" and settings["teacher_statistics"] == "batch"
        if by_batch and distributed.get_world_size() > 1:
            raise UserError(
                f"--protocol {title}: its labels depend on the images of a batch, which several processes "
                "would divide; give it one process, and other seeds another one"
            )


def teachers_of(job: Job, runtime: Runtime, stored: dict[int, StoredLabels]) -> Teachers:
    """Who labels: the teachers, those of the stored labels, or nobody for hard labels without a checkpoint."""
    if stored:
        for labels in stored.values():
            labels.check_flags(job.geometry)
        return next(iter(stored.values())).teachers
    workers = job.machine.workers
    if job.teacher.teacher_path or job.has_soft_labels:
        first = next(iter(job.sets))
        return Teachers.of(job.teacher.load(job.geometry, first, "--syn-dir", workers), runtime)
    return Teachers(cli.geometry_of_images(job.geometry, ImageFolder(job.val_dir, "--val-dir"), workers))


def set_of(path: str, test_folder: ImageFolder, classes_by: str) -> ImageFolder:
    """A set with the labels of the test images. Raises UserError where its classes differ."""
    if classes_by == "position":
        folder = ImageFolder(path, "--syn-dir").renamed(test_folder.classes)
        if folder.folders != folder.classes:
            pairs = ", ".join(f"{own} is {name}" for own, name in list(zip(folder.folders, folder.classes))[:3])
            print(f"--syn-dir {path}: classes by position: {pairs}, ...")
        return folder
    advice = "give --classes-by position if its k-th class is the k-th of these"
    return ImageFolder(path, "--syn-dir", test_folder.classes, f"--val-dir {test_folder.root}", advice)


def require_same_size(sets: list[ImageFolder]) -> None:
    """Raises UserError if the sets differ in size: their students would differ in updates, and prove nothing."""
    first = sets[0]
    for folder in sets[1:]:
        if len(folder) != len(first):
            raise UserError(
                f"--syn-dir {folder.root}: has {len(folder)} images, {first.root} has {len(first)}: sets are compared "
                f"at the same number of images and updates; give --ipc {min(folder.fewest(), first.fewest())}, or "
                "measure them one by one"
            )


def protocol_of(experiment: Experiment, settings: dict[str, Any], arch: str, folder: ImageFolder) -> Protocol:
    """The protocol for this student on this set."""
    facts = SetFacts(experiment.geometry.num_classes, nominal_ipc(folder), len(folder), experiment.geometry.input_size)
    return resolve(settings, arch, facts, experiment.job.evaluations)


def nominal_ipc(folder: ImageFolder) -> int:
    """Images per class: of the smallest class, unless that is a short one that the selection kept as it is."""
    kept = manifest.kept_ipc(folder.root)
    return kept if kept == folder.most() else folder.fewest()


def fitted(experiment: Experiment, title: str, protocol: Protocol, arch: str, method: str) -> tuple[str, Protocol]:
    """With --batch-size auto the protocol with the largest batch that fits, and what to call it then."""
    if not experiment.job.machine.finds_batch_size:
        return title, protocol
    student, size = experiment.student(arch), experiment.geometry.input_size

    def trial(images: int) -> None:
        for network in experiment.teachers.networks:
            try_evaluation(network, images, size, experiment.runtime)
        try_training_step(student, images, size, experiment.runtime)

    output = experiment.job.output_dir / file_name(method, arch, title)
    batch_size = find_batch_size(protocol.batch_size, 2, output, trial)
    if batch_size == protocol.batch_size:
        return title, protocol
    return f"{title} batch_size={batch_size}", replace(protocol, batch_size=batch_size)


def make_run(
    experiment: Experiment, title: str, protocol: Protocol, arch: str, method: str, folder: ImageFolder
) -> Run:
    """The results of this student on this set, with those that are on disk already."""
    job, test_folder = experiment.job, experiment.test.folder
    weights = image_weights(folder) if protocol.image_weights == "on" else None
    geometry = plain(experiment.geometry)
    settings = {
        **plain(protocol),
        **{name: geometry[name] for name in ("input_size", "mean", "std")},
        "method": method,
        "student": arch,
        "images": folder.fingerprint(),
        "test_images": test_folder.fingerprint(),
        "stem": job.geometry.stem,
        "teachers": list(experiment.teachers.digests),
        "weights": weights,
        "precision": experiment.runtime.precision,
    }
    if job.training.sync_bn:
        settings["sync_bn"] = True
    if kept := experiment.kept_classes:
        # One run, whether it stores its labels first or finds them.
        settings["stored_labels"] = kept
        title += " stored" if kept == experiment.geometry.num_classes else f" stored top-{kept}"
    columns = {
        "dataset": job.geometry.dataset or Path(job.val_dir).resolve().parent.name,
        "method": method,
        "ipc": nominal_ipc(folder),
        "teacher": experiment.teachers.name,
        "student": arch,
        "protocol": title,
        "epochs": protocol.epochs,
        "syn_dir": str(folder.root),
    }
    return Run(job.output_dir, settings, columns)


def measure(experiment: Experiment, run: Run, protocol: Protocol, folder: ImageFolder) -> None:
    """Train and store one student for each seed that is not stored yet; print the mean."""
    job, runtime = experiment.job, experiment.runtime
    what = f"{run.facts['method']}, {run.facts['student']}, {run.facts['protocol']}"
    print(
        f"validate: {what}: {len(folder)} images, {run.facts['ipc']} a class, {protocol.epochs} epochs of batch "
        f"{protocol.batch_size}, {runtime}{', weighted images' if run.settings['weights'] else ''}"
    )
    views = Views(folder, Augmentation(protocol, experiment.geometry), job.machine.workers)
    streams = [Stream(views, protocol, seed, experiment.geometry, runtime) for seed in job.seeds]
    for stream in streams:
        if experiment.stored:
            experiment.stored[stream.seed].check(stream)
    if protocol.labels == "soft" and any(seed not in run.results for seed in job.seeds):
        experiment.check_class_order()
    with locked(job.output_dir / "results.csv"):
        for stream in streams:
            if stream.seed in run.results:
                top1 = run.results[stream.seed].top1
                print(f"validate: seed {stream.seed} is complete: top-1 {top1:.2f} %")
                continue
            result = train_student(experiment, run, stream)
            run.add(result, arguments=job.arguments, versions=versions(), peak_memory_mb=runtime.peak_memory_mb())
    results = [run.results[seed] for seed in job.seeds]
    found = summary(results)
    print(
        f"validate: {what}: top-1 {found['top1_mean']:.2f} ± {found['top1_std']:.2f} % over {len(results)} "
        f"seed{'s' * (len(results) > 1)} (best epoch {found['best_top1_mean']:.2f} %), "
        f"{sum(result.seconds for result in results):.0f} s; {run.path}"
    )


def train_student(experiment: Experiment, run: Run, stream: Stream) -> Result:
    """One student from scratch."""
    job, runtime, arch = experiment.job, experiment.runtime, run.facts["student"]
    source = target_source(experiment, stream)
    with seeded(stream.seed, "student weights"):
        student = experiment.student(arch)
    student = runtime.place(distributed.sync_batchnorm(student, runtime.device) if job.training.sync_bn else student)
    weights = run.settings["weights"]
    name = f"{run.path.stem}_seed{stream.seed}"
    state_path = run.path.with_name(f".{name}.state")
    with (
        closing(job.training.curves(job.output_dir / "logs", name, run.settings)) as log,
        JointState(state_path, {**run.settings, "seed": stream.seed}, job.training.save_every) as state,
    ):
        training = Training(
            f"{arch} seed {stream.seed}",
            stream.schedule,
            runtime,
            experiment.geometry,
            experiment.test,
            stream.protocol.evaluations,
            log,
            parts=accumulated(stream.protocol),
            stream=(stream.seed, "student"),
        )
        tensor = torch.tensor(weights, device=runtime.device) if weights else None
        return train(student, source, stream, training, tensor, state)


def target_source(experiment: Experiment, stream: Stream) -> Callable[[int], Labelled]:
    """Where the batches with their targets come from."""
    labels = experiment.job.labels
    if labels.save_labels:
        Writer(labels.save_labels, experiment.teachers, labels.top_k, experiment.job.overwrite).save(stream)
        return partial(StoredLabels(labels.save_labels, stream.seed).labelled, stream)
    if experiment.stored:
        return partial(experiment.stored[stream.seed].labelled, stream)
    return partial(experiment.teachers.labelled if stream.protocol.labels == "soft" else hard_labelled, stream)


if __name__ == "__main__":
    entry.run(main)
