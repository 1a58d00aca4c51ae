"""What a command measures: its students' common ground, and each student on each set under each protocol."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ContextManager

from torch import nn

from utils.data.geometry import Geometry, plain
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.fit.batch_size import find_batch_size, try_evaluation, try_training_step
from utils.nets import class_order, models
from utils.nets.class_order import Answers
from utils.nets.teacher import beside
from utils.run import distributed
from utils.run.device import Runtime
from utils.run.outputs import locked
from validate.augment import squared
from validate.flags import Job
from validate.labels import StoredLabels, other_precision
from validate.protocols import Protocol, SetFacts, resolve, said
from validate.results import Run, file_name
from validate.sets import nominal_ipc
from validate.targets import Teachers, image_weights


@dataclass(frozen=True)
class Experiment:
    """What all students of a command have in common."""

    job: Job
    runtime: Runtime
    teachers: Teachers
    stored: dict[int, StoredLabels]  # by seed; empty unless labels are loaded
    test: EvalBatches
    dataset: str | None  # the known data set of the images
    judged: set[int] = field(default_factory=set)  # the teachers whose order of classes was checked

    @property
    def geometry(self) -> Geometry:
        return self.teachers.geometry

    @property
    def stem(self) -> str:
        """The students', by the flag or the input size, whatever the teacher's is."""
        return self.job.geometry.stem or models.default_stem(self.geometry.input_size)

    def student(self, arch: str) -> nn.Module:
        """A student with random weights."""
        return models.build(arch, self.geometry.num_classes, self.geometry.input_size, self.stem)

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


@dataclass(frozen=True)
class Trial:
    """Students of one architecture on one set under one protocol."""

    title: str  # of the protocol
    protocol: Protocol
    arch: str
    method: str
    folder: ImageFolder


def protocol_of(experiment: Experiment, settings: dict[str, Any], arch: str, folder: ImageFolder) -> Protocol:
    """The protocol for this student on this set."""
    geometry = experiment.geometry
    facts = SetFacts(
        geometry.num_classes,
        nominal_ipc(folder),
        len(folder),
        geometry.input_size,
        experiment.dataset,
        folder.manifest.tile_side,
    )
    return resolve(settings, arch, facts, experiment.job.evaluations)


def fitted(experiment: Experiment, trial: Trial) -> Trial:
    """With --batch-size auto the trial with the largest batch that fits, and a title that says so."""
    if not experiment.job.machine.finds_batch_size:
        return trial
    student, size = experiment.student(trial.arch), experiment.geometry.input_size

    def attempt(images: int) -> None:
        for network in experiment.teachers.networks:
            try_evaluation(network, images, size, experiment.runtime)
        try_training_step(student, images, size, experiment.runtime)

    output = experiment.job.output_dir / file_name(trial.method, trial.arch, trial.title)
    work = {
        **plain(experiment.geometry),
        **experiment.runtime.kind,
        "student": trial.arch,
        "stem": experiment.job.geometry.stem,
    }
    work |= {"teachers": list(experiment.teachers.digests), "images": len(trial.folder) + len(experiment.test.folder)}
    with locked(output, wait=600):  # one process tries, and notes what it found, before another one does
        batch_size = find_batch_size(trial.protocol.batch_size, 2, output, attempt, **work)
    if batch_size == trial.protocol.batch_size:
        return trial
    protocol = replace(trial.protocol, batch_size=batch_size)
    return replace(trial, title=f"{trial.title} batch_size={batch_size}", protocol=protocol)


def claimed_run(experiment: Experiment, trial: Trial) -> ContextManager[Run]:
    """The results of this student on this set, with those that are on disk already; this process's meanwhile."""
    job, test_folder = experiment.job, experiment.test.folder
    title, protocol, folder = trial.title, trial.protocol, trial.folder
    weights = image_weights(folder) if protocol.image_weights == "on" else None
    geometry = plain(experiment.geometry)
    settings = {
        **said(protocol),
        **{name: geometry[name] for name in ("input_size", "mean", "std")},
        "method": trial.method,
        "student": trial.arch,
        "images": folder.fingerprint(folder.manifest.digests),  # set_of has compared them with the files
        "test_images": test_folder.fingerprint(),
        "stem": job.geometry.stem,
        "teachers": list(experiment.teachers.digests),
        "weights": weights,
        "precision": experiment.runtime.precision,
        **squared(protocol, folder),
    }
    # Of a teacher that says no stem the students' is taken, but for stored labels, which may be of another one.
    settings |= beside({**settings, "stem": experiment.stem}, experiment.teachers.unsaid)
    if job.training.sync_bn:
        settings["sync_bn"] = True
    if kept := experiment.kept_classes:
        # One run, whether it stores its labels first or finds them.
        settings["stored_labels"] = kept
        title += " stored" if kept == experiment.geometry.num_classes else f" stored top-{kept}"
    if precision := other_precision(experiment.stored.values(), experiment.runtime.precision):
        settings["label_precision"] = precision
        title += f" {precision}"
    columns = {
        "dataset": experiment.dataset or Path(job.val_dir).resolve().parent.name,
        # In the settings it is as it was given: results of earlier versions, which had no more, are found.
        "method": folder.manifest.full_name(trial.method),
        "ipc": nominal_ipc(folder),
        "teacher": experiment.teachers.name,
        "student": trial.arch,
        "protocol": title,
        "epochs": protocol.epochs,
        "syn_dir": str(folder.root),
        "images": len(folder),
        "set": folder.manifest.digest,
        "known_dataset": experiment.dataset,
        "classes": experiment.geometry.num_classes,
    }
    distributed.require_same("settings of the run", settings)
    return Run.claimed(job.output_dir, settings, columns)
