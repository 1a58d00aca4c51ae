"""python -m recover: synthesis of images against frozen teachers, DELT's or another method's."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.flags import Job, parse
from recover.objectives import OBJECTIVES
from recover.objectives.base import Objective
from recover.originals import Originals
from recover.resolutions import Stages
from recover.settings import Settings
from recover.starts import Starts
from recover.synthetic_set import SyntheticSet
from recover.units import Unit, split
from utils.data import gallery
from utils.data.datasets import first_known
from utils.data.gallery import ImageSet
from utils.data.geometry import plain
from utils.data.images import resize_whole
from utils.data.manifest import Manifest
from utils.fit.batch_size import find_batch_size
from utils.nets import judge
from utils.nets.frozen import COMPARED, Untouched
from utils.nets.statistics import require_order
from utils.nets.teacher import Teacher, beside, unsaid_of
from utils.run import entry
from utils.run.device import Runtime, versions
from utils.run.distributed import rank_from_environment
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output, locked
from utils.run.progress import progress

HARDEST = "min"  # the criterion of ranking that chooses what the teacher gets wrong


def main() -> None:
    job = parse()
    runtime = job.machine.runtime()
    teachers = job.teacher.load(job.geometry, job.init_dir, "--init-dir")
    geometry = teachers[0].geometry  # of the pixels that are optimised
    job = job.of_images(dataset_of(job, teachers), geometry.input_size, len(teachers))
    settings = job.settings
    Stages.of(settings, geometry.input_size).check(teachers)
    starts = starts_of(job, teachers)
    schedule = EarlyLate(starts.ipc, **settings.schedule)
    check_output(job.syn_dir)
    check_output(job.contact_sheet)
    if job.overwrite or not Manifest.of(job.syn_dir).is_finished:
        check_class_order(job, teachers, starts, runtime)

    with locked(job.syn_dir):
        recover(job, teachers, schedule, starts, runtime)


def starts_of(job: Job, teachers: list[Teacher]) -> Starts:
    """Noise, or the images of --init-dir, in the geometry of the first teacher."""
    geometry = teachers[0].geometry
    if job.settings.init == "noise":
        return Starts.of_noise(job.init_dir, geometry, job.ipc, job.classes_by)
    return Starts.of_folder(job.init_dir, geometry, job.ipc, job.machine.workers, job.classes_by)


def recover(job: Job, teachers: list[Teacher], schedule: EarlyLate, starts: Starts, runtime: Runtime) -> None:
    """Recover the units that the set lacks; the process that finds all done finishes the set."""
    settings, geometry = job.settings, teachers[0].geometry
    least = fewest(settings, starts)
    batch_size = unit_size(job, teachers, schedule, runtime, starts)
    units = split(len(starts.classes), starts.ipc, batch_size, settings.batch_by)
    # Decided by all units, not by those that are left, so that a resumed run computes the same bytes.
    steps = settings.iterations * len(units)
    objective = OBJECTIVES[settings.objective].build(teachers, settings)
    objective.check(starts.ipc, settings.batch_by)
    for path in settings.statistics:
        require_order(path, starts.classes)
    found = {**identity(job, objective, teachers, runtime), "batch_size": batch_size}
    found |= {"ipc": starts.ipc, "init": starts.identity()}
    if not starts.folder:
        found["classes"] = starts.classes  # which nothing else may say: two runs would mix in one folder
    originals = Originals.of(starts) if objective.needs_originals else None
    if originals:
        found["originals"] = originals.identity()
    names = {member: starts.output_name(member, job.image_format) for member in starts.members}
    synthetic_set = SyntheticSet(job.syn_dir, found, units, names)
    synthetic_set.claim(job.overwrite, *([job.init_dir] if job.init_dir else []))

    missing = synthetic_set.missing()
    if not missing and synthetic_set.finished and job.contact_sheet.exists():
        synthetic_set.work.remove()
        print(f"recover: {job.syn_dir} is complete")
        return
    if missing:
        print(
            f"recover: {job.method}: {len(starts.classes)} classes x {starts.ipc} images, {schedule.rounds} "
            f"round{'s' * (schedule.rounds > 1)}, {settings.iterations} iterations, {len(missing)} of {len(units)} "
            f"units to do, {', '.join(t.arch for t in teachers)} {geometry.input_size} px, {runtime}"
        )
        engine = Engine(objective, geometry, schedule, runtime, settings, steps)
        with explain_out_of_memory(batch_size, least):
            synthesise(job, engine, starts, originals, synthetic_set, missing)
    finish(job, teachers, schedule, starts, synthetic_set, runtime)


def dataset_of(job: Job, teachers: list[Teacher]) -> str | None:
    """The known data set that the flag names, or a teacher, or the manifest of the starting images."""
    start = Manifest.of(job.init_dir).dataset if job.init_dir else None
    return first_known(job.geometry.dataset, *(teacher.dataset for teacher in teachers), start)


def check_class_order(job: Job, teachers: list[Teacher], starts: Starts, runtime: Runtime) -> None:
    """Judge the order of the classes of teachers that do not say it themselves, by the images of --init-dir.

    Raises UserError where it cannot be theirs.
    """
    is_unsaid = any(teacher.order is not None for teacher in teachers)
    if is_unsaid and job.init_dir and Manifest.of(job.init_dir).criterion == HARDEST:
        print(f"recover: {job.init_dir} cannot judge the order of the classes: images that a teacher gets wrong")
        return
    if folder := starts.labelled:
        for teacher in teachers:
            judge.by_sample("recover", teacher, folder, runtime, job.machine.workers, resize_whole)


def compare(job: Job, engine: Engine, images: torch.Tensor) -> None:
    """Raises UserError if the objective's networks say something else of the `images` than the teachers do.

    By then the objective has changed the teachers' networks, so they are read once more.
    """
    networks = engine.objective.networks()
    for teacher, prepared in zip(job.teacher.again(job.geometry, engine.geometry) if networks else [], networks):
        shown = teacher.geometry.renormalise(images, engine.geometry)
        Untouched.of(teacher.network, shown, engine.runtime).compare(prepared, teacher.arch)


def synthesise(
    job: Job,
    engine: Engine,
    starts: Starts,
    originals: Originals | None,
    synthetic_set: SyntheticSet,
    missing: list[Unit],
) -> None:
    """Recover and save one unit after the other, as long as there are any left."""
    schedule, geometry = engine.schedule, engine.geometry
    updates = sum(schedule.updates_of[position] for unit in missing for _, position in unit.members)
    _, world_size = rank_from_environment()
    with progress(total=updates // world_size, desc="recover", unit="img") as bar:
        for done, unit in enumerate(synthetic_set.take(), start=1):

            def report(step_updates: int, iteration: int, loss: float) -> None:
                text = f"unit {done}/{len(missing)}, step {iteration}, loss {loss:.3f}"
                bar.set_postfix_str(text, refresh=False)
                bar.update(step_updates)

            positions = [position for _, position in unit.members]
            start = Start(
                starts.images(unit, job.seed),
                torch.tensor([label for label, _ in unit.members]),
                [schedule.start_of[position] for position in positions],
                originals.images(unit) if originals else None,
            )
            if done == 1:
                compare(job, engine, start.images[:COMPARED])
            recovery = Recovery(engine, start, job.seed, "recover", unit.number)
            with synthetic_set.state(unit, job.save_every) as state:
                pixels = (geometry.denormalise(recovery.run(report, state)) * 255).round().clamp(0, 255).byte()
                facts = [
                    {"round": schedule.round_of[position], **engine.objective.facts(label, position)}
                    for label, position in unit.members
                ]
                synthetic_set.save(unit, pixels, facts, seconds=round(state.seconds, 2))


def finish(
    job: Job,
    teachers: list[Teacher],
    schedule: EarlyLate,
    starts: Starts,
    synthetic_set: SyntheticSet,
    runtime: Runtime,
) -> None:
    """Write the manifest and the contact sheet if all units are done, by whatever process."""
    if not synthetic_set.complete(
        method=job.method,
        arguments=job.arguments,
        versions=versions(),
        teachers=[{"arch": teacher.arch, "sha256": teacher.sha256} for teacher in teachers],
        rounds=schedule.rounds,
        classes=starts.classes,
        tile_side=starts.tile_side,
        peak_memory_mb=runtime.peak_memory_mb(),
    ):
        print("recover: this process has done its units; the manifest follows when all are done")
        return
    after = {name: [] for name in starts.classes}
    before = {name: [] for name in starts.classes}
    for label, position in starts.members:
        name = starts.classes[label]
        after[name].append(synthetic_set.folder / synthetic_set.names[label, position])
        before[name].append(starts.path((label, position)))
    sets = [ImageSet("recovered", after, schedule.updates_of)]
    if starts.folder:
        sets.insert(0, ImageSet("start", before))
    gallery.draw(job.contact_sheet, starts.classes, sets)
    print(
        f"recover: {len(starts.members)} images in {job.syn_dir}; {synthetic_set.seconds:.0f} s, peak memory "
        f"{runtime.peak_memory_mb():.0f} MB; contact sheet: {job.contact_sheet}"
    )


def fewest(settings: Settings, starts: Starts) -> int:
    """Images that a unit has at least."""
    return starts.ipc if settings.batch_by == "class" else 1


def unit_size(job: Job, teachers: list[Teacher], schedule: EarlyLate, runtime: Runtime, starts: Starts) -> int:
    """Images of a unit: as asked, or the largest number that fits."""
    settings = job.settings
    least = fewest(settings, starts)
    default = max(settings.batch_size or len(starts.members), least)

    def trial(images: int) -> None:
        """One step of a unit of so many images, all of them active."""
        one_stage = replace(settings, iterations=1, stages=1, stage_sizes=(1.0,))
        objective = OBJECTIVES[settings.objective].build(copy.deepcopy(teachers), settings)
        short = replace(schedule, iterations=1, round_iterations=0)
        geometry = teachers[0].geometry
        engine = Engine(objective, geometry, short, replace(runtime, compile="off"), one_stage, 1)
        pixels = torch.zeros(images, 3, geometry.input_size, geometry.input_size)
        tiles = Originals.of(starts).count if objective.needs_originals else 0
        originals = pixels[:, None].expand(-1, tiles, -1, -1, -1) if tiles else None
        start = Start(pixels, torch.zeros(images, dtype=torch.long), [0] * images, originals)
        Recovery(engine, start, "trial").step().item()

    if job.machine.finds_batch_size:
        work = {**settings.plain, **plain(teachers[0].geometry), **runtime.kind}
        work["teachers"] = [teacher.sha256 for teacher in teachers]
        return find_batch_size(default, least, job.syn_dir, trial, **work)
    return job.machine.batch_size or default


def identity(job: Job, objective: Objective, teachers: list[Teacher], runtime: Runtime) -> dict[str, Any]:
    """What decides the bytes of the result, but for the starting images: another identity is another run."""
    geometry = plain(teachers[0].geometry)
    return {
        **job.settings.plain,
        **objective.identity(),
        **geometry,
        **beside(geometry, unsaid_of(teachers)),
        "seed": job.seed,
        "image_format": job.image_format,
        "device": runtime.device.type,
        **runtime.identity,
        **({"classes_by": job.classes_by} if job.classes_by != "name" else {}),
    }


if __name__ == "__main__":
    entry.run(main)
