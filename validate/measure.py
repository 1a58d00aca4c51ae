"""Trains and tests the students of a trial, seed by seed, and stores what they reach."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Callable, Mapping

import torch

from utils.fit.loop import NotFinite, Training
from utils.run import distributed
from utils.run.device import versions
from utils.run.resume import JointState
from utils.run.seeds import seeded
from validate.augment import Augmentation, Views
from validate.label_writer import Writer
from validate.labels import StoredLabels
from validate.protocols import SEARCH
from validate.results import Result, Run, summary
from validate.stream import Stream
from validate.targets import Labelled, accumulated, hard_labelled
from validate.train import train
from validate.trial import Experiment, Trial, claimed_run


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
    if experiment.stored:
        for stream in streams:
            experiment.stored[stream.seed].check(stream)
        for seed in job.seeds:
            if seed not in run.results and seed not in known:
                experiment.stored[seed].require_whole()  # now, and not after hours of training on another seed's
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
        job.training.logger(job.output_dir / "logs", name, run.settings) as log,
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
