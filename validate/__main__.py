"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, ContextManager, Mapping

import torch
from torch import nn

from utils.data import manifest
from utils.data.class_folders import folder_for
from utils.data.datasets import first_known
from utils.data.geometry import Geometry, plain
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.fit.batch_size import find_batch_size, try_evaluation, try_training_step
from utils.fit.loop import NotFinite, Training
from utils.nets import class_order, models
from utils.nets.class_order import Answers
from utils.nets.teacher import beside
from utils.run import distributed, entry
from utils.run.device import Runtime, versions
from utils.run.errors import UserError
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output, locked
from utils.run.resume import JointState
from utils.run.seeds import seeded
from validate.augment import Augmentation, Views, squared
from validate.flags import Job, parse
from validate.labels import StoredLabels, Writer, other_precision, require_alike
from validate.protocols import SEARCH, Protocol, SetFacts, resolve, said
from validate.results import Result, Run, file_name, summary
from validate.sets import geometry_without_teacher, nominal_ipc, require_same_size, set_of
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


def main() -> None:
    job = parse()
    runtime = job.machine.runtime()
    with distributed.process_group(runtime.device, job.training.wait):
        validate(job, runtime)


def validate(job: Job, runtime: Runtime) -> None:
    """Measure each student on each set under each protocol; all ranks together."""
    load_labels, workers = job.labels.load_labels, job.machine.workers
    stored = {seed: StoredLabels.of_all_ranks(load_labels, seed) for seed in job.seeds} if load_labels else {}
    require_alike(list(stored.values()))
    teachers = teachers_of(job, runtime, stored)
    geometry = teachers.geometry
    dataset = dataset_of(job, teachers)
    job = job.of_images(dataset, geometry.input_size)
    require_one_process(job)
    test_folder = folder_for(geometry, job.val_dir, "--val-dir")
    sets = [set_of(path, test_folder, job.classes_by) for path in job.sets]
    check_output(job.output_dir / "results.csv")
    if job.ipc:
        sets = [folder.first(job.ipc, "leave out --ipc to take all that are there") for folder in sets]
    require_same_size(sets)
    sets[0].require_several()  # and so the others
    test = EvalBatches(test_folder, geometry.input_size, workers=workers)
    experiment = Experiment(job, runtime, teachers, stored, test, dataset)
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
                trial = fitted(experiment, Trial(title, protocol, arch, method, folder))
                with explain_out_of_memory(trial.protocol.batch_size, 2):
                    if trial.protocol.lr_search:
                        measure_searched(experiment, trial)
                    else:
                        with claimed_run(experiment, trial) as run:
                            measure(experiment, run, trial)


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
        return Teachers.of(job.teacher.load(job.geometry, first, "--syn-dir", workers, tuple(job.sets)), runtime)
    return Teachers(geometry_without_teacher(job.sets, job.val_dir, job.geometry, job.classes_by, workers))


def dataset_of(job: Job, teachers: Teachers) -> str | None:
    """The known data set that the flag names, or the teachers, or the manifest of a set: one for all sets."""
    return first_known(job.geometry.dataset, teachers.dataset, *map(manifest.dataset, job.sets))


def protocol_of(experiment: Experiment, settings: dict[str, Any], arch: str, folder: ImageFolder) -> Protocol:
    """The protocol for this student on this set."""
    geometry = experiment.geometry
    facts = SetFacts(
        geometry.num_classes,
        nominal_ipc(folder),
        len(folder),
        geometry.input_size,
        experiment.dataset,
        manifest.tile_side(folder.root),
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


def measure_searched(experiment: Experiment, trial: Trial) -> None:
    """`measure` at the best rate of `lr_search`, by the last epoch's top-1 of a student of the first seed.

    DD-Ranking's code does so for hard labels and for random images. Each rate's student is a run of its own, in
    OUTPUT_DIR/lr-search. Raises UserError where no rate gives a finite loss.
    """
    job, protocol = experiment.job, trial.protocol
    search = replace(experiment, job=replace(job, output_dir=job.output_dir / "lr-search", seeds=job.seeds[:1]))
    found: dict[float, Result] = {}
    for lr in protocol.lr_search:
        title = trial.title.replace(f"lr={SEARCH}", f"lr={lr:g}")
        candidate = replace(trial, title=title, protocol=replace(protocol, lr=lr, lr_search=()))
        with claimed_run(search, candidate) as run:
            try:
                measure(search, run, candidate)
                found[lr] = run.results[job.seeds[0]]
            except NotFinite as error:
                print(f"validate: --lr {SEARCH}: {lr:g} is left out: {error}")
                state_of(search, run, job.seeds[0]).remove()
                failed = error
    if not found:
        raise failed
    best = max(found, key=lambda lr: found[lr].top1)  # of equally good ones the smallest
    top1 = {f"{lr:g}": result.top1 for lr, result in found.items()}
    listed = ", ".join(f"{lr} {value:.2f} %" for lr, value in top1.items())
    print(f"validate: --lr {SEARCH}: {listed}: takes {best:g}")
    trial = replace(trial, protocol=replace(protocol, lr=best))
    with claimed_run(experiment, trial) as run:
        run.facts["lr_search"] = top1
        measure(experiment, run, trial, {job.seeds[0]: found[best]})


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
        "images": folder.fingerprint(manifest.image_digests(folder.root)),  # set_of has compared them with the files
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
        "method": manifest.full_name(folder.root, trial.method),
        "ipc": nominal_ipc(folder),
        "teacher": experiment.teachers.name,
        "student": trial.arch,
        "protocol": title,
        "epochs": protocol.epochs,
        "syn_dir": str(folder.root),
        "images": len(folder),
        "set": manifest.digest_of_images(folder.root),
        "known_dataset": experiment.dataset,
        "classes": experiment.geometry.num_classes,
    }
    distributed.require_same("settings of the run", settings)
    return Run.claimed(job.output_dir, settings, columns)


def measure(experiment: Experiment, run: Run, trial: Trial, known: Mapping[int, Result] = {}) -> None:
    """Train and store one student for each seed that is not stored yet, nor `known`; print the mean."""
    job, runtime, protocol, folder = experiment.job, experiment.runtime, trial.protocol, trial.folder
    what = f"{run.facts['method']}, {run.facts['student']}, {run.facts['protocol']}"
    weighted = ", weighted images" if run.settings["weights"] else ""
    print(
        f"validate: {what}: {len(folder)} images, {run.facts['ipc']} a class, {protocol.epochs} epochs of batch "
        f"{protocol.batch_size}, {experiment.geometry.input_size} px, {runtime}{weighted}"
    )
    views = Views(folder, Augmentation(protocol, experiment.geometry), job.machine.workers)
    streams = [Stream(views, protocol, seed, experiment.geometry, runtime) for seed in job.seeds]
    for stream in streams:
        if experiment.stored:
            experiment.stored[stream.seed].check(stream)
    asked = job.labels.save_labels or any(seed not in run.results for seed in job.seeds)
    if asked:  # of hard labels, too: sets that such a teacher guided lie under its names
        experiment.check_class_order()
    for stream in streams:
        if stream.seed in run.results:
            save_labels(experiment, stream, learns=False)  # in a folder that has them not, or has damaged ones
            state_of(experiment, run, stream.seed).remove()
            top1 = run.results[stream.seed].top1
            print(f"validate: seed {stream.seed} is complete: top-1 {top1:.2f} %")
        elif stream.seed in known:
            store(experiment, run, known[stream.seed])
        else:
            train_student(experiment, run, stream)
    results = [run.results[seed] for seed in job.seeds]
    found = summary(results)
    if len(numbers := sorted(set().union(*(result.numbers for result in results)))) > 1:
        listed = " and ".join(map(str, numbers))
        print(f"validate: {what}: trained by {listed} processes: BatchNorm saw other parts of a batch; not alike")
    print(
        f"validate: {what}: top-1 {found['top1_mean']:.2f} ± {found['top1_std']:.2f} % over {len(results)} "
        f"seed{'s' * (len(results) > 1)} (best epoch {found['best_top1_mean']:.2f} %), "
        f"{sum(result.seconds for result in results):.0f} s; {run.path}"
    )


def store(experiment: Experiment, run: Run, result: Result) -> None:
    """Add a student's result to its run's."""
    arguments, peak = experiment.job.arguments, experiment.runtime.peak_memory_mb()
    run.add(result, arguments=arguments, versions=versions(), peak_memory_mb=peak)


def state_of(experiment: Experiment, run: Run, seed: int) -> JointState:
    """Where a student in training is saved."""
    path = run.path.with_name(f".{run.path.stem}_seed{seed}.state")
    return JointState(path, {**run.settings, "seed": seed}, experiment.job.training.save_every)


def train_student(experiment: Experiment, run: Run, stream: Stream) -> None:
    """One student from scratch; its result is stored before its state is removed."""
    job, runtime, arch = experiment.job, experiment.runtime, run.facts["student"]
    source = target_source(experiment, stream)
    with seeded(stream.seed, "student weights"):
        student = experiment.student(arch)
    student = runtime.place(distributed.sync_batchnorm(student, runtime.device) if job.training.sync_bn else student)
    weights = run.settings["weights"]
    name = f"{run.path.stem}_seed{stream.seed}"
    with (
        job.training.curves(job.output_dir / "logs", name, run.settings) as log,
        state_of(experiment, run, stream.seed) as state,
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
        store(experiment, run, train(student, source, stream, training, tensor, state))


def save_labels(experiment: Experiment, stream: Stream, learns: bool = True) -> None:
    """Store the labels of a student, where that is asked for; those that are there, and whole, stay."""
    labels = experiment.job.labels
    if labels.save_labels:
        Writer(labels.save_labels, experiment.teachers, labels.top_k, experiment.job.overwrite).save(stream, learns)


def target_source(experiment: Experiment, stream: Stream) -> Callable[[int], Labelled]:
    """Where the batches with their targets come from."""
    labels = experiment.job.labels
    if labels.save_labels:
        save_labels(experiment, stream)
        return partial(StoredLabels.of_all_ranks(labels.save_labels, stream.seed).labelled, stream)
    if experiment.stored:
        return partial(experiment.stored[stream.seed].labelled, stream)
    return partial(experiment.teachers.labelled if stream.protocol.labels == "soft" else hard_labelled, stream)


if __name__ == "__main__":
    entry.run(main)
