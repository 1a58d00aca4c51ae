"""python -m recover: synthesis of images against frozen teachers, DELT's or another method's."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recover.earlylate import CURRICULA, EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.methods import METHODS
from recover.objectives import OBJECTIVES
from recover.objectives.base import COMBINATIONS, Objective
from recover.settings import Settings
from recover.starts import Starts
from recover.synthetic_set import SyntheticSet
from recover.units import Unit, split
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data import gallery, manifest
from utils.data.gallery import ImageSet
from utils.data.geometry import Geometry, GeometryFlags, plain
from utils.data.images import resize_whole
from utils.data.loader import EvalBatches
from utils.fit.batch_size import find_batch_size
from utils.nets import class_order
from utils.nets.class_order import Answers
from utils.nets.frozen import COMPARED, Untouched, frozen
from utils.nets.teacher import Teacher
from utils.run import entry, registry
from utils.run.device import Runtime, versions
from utils.run.distributed import rank_from_environment
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output, locked
from utils.run.progress import progress

BATCH_SIZE = 100


@dataclass(frozen=True)
class Job:
    """The command line."""

    method: str  # its name, and what was changed
    settings: Settings
    init_dir: str | None
    classes_by: str  # name or position
    syn_dir: Path
    contact_sheet: Path
    ipc: int | None
    seed: int
    image_format: str
    save_every: float  # minutes
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags
    arguments: dict[str, Any]  # as they were given, for the manifest


def parse() -> Job:
    parser = cli.Parser("recover", "Optimise images against frozen teachers, by the recipe of --method.")
    parser.add_argument(
        "--init-dir",
        metavar="DIR",
        help="ImageFolder of the selection, file names in order; with --init noise it only names the classes, and may "
        "be left out if the teacher does",
    )
    cli.add_classes_by(parser, "--init-dir", "the teacher")
    parser.add_argument("--syn-dir", required=True, metavar="DIR", help="ImageFolder to write")
    parser.add_argument("--contact-sheet", metavar="FILE.png", help="SYN_DIR/contact_sheet.png if left out")
    parser.add_argument("--ipc", type=cli.positive, help="images per class; as many as --init-dir has if left out")
    parser.add_argument(
        "--image-format", choices=("png", "jpg"), default="png", help="png is lossless; jpg has quality 95"
    )
    add_method(parser)
    cli.add_save_every(parser, "the unit that is being optimised")
    cli.add_teacher(parser, several="see --combine")
    cli.add_common(parser, f"images optimised together; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    sheet = args.contact_sheet or str(Path(args.syn_dir) / "contact_sheet.png")
    if not sheet.endswith(".png") or Path(sheet).is_dir():
        parser.error(f"--contact-sheet {sheet}: name a .png file")
    method, settings = chosen_method(parser, vars(args))
    if settings.init == "images" and not args.init_dir:
        parser.error("--init-dir is needed unless --init noise is given")
    return Job(
        method=method,
        settings=settings,
        init_dir=args.init_dir,
        classes_by=args.classes_by,
        syn_dir=Path(args.syn_dir),
        contact_sheet=Path(sheet),
        ipc=args.ipc,
        seed=args.seed,
        image_format=args.image_format,
        save_every=args.save_every,
        overwrite=args.overwrite,
        teacher=cli.group(args, TeacherFlags),
        geometry=cli.group(args, GeometryFlags),
        machine=cli.group(args, MachineFlags),
        arguments=vars(args),
    )


def add_method(parser: cli.Parser) -> None:
    group = parser.add_argument_group("method", "given flags win over the recipe, and show in the set's name")
    group.add_argument("--method", choices=tuple(METHODS), default="delt", help="the recipe, of recover/methods.py")
    group.add_argument("--objective", choices=tuple(OBJECTIVES), help="what the images minimise")
    group.add_argument("--iterations", type=cli.positive, help="ITR, of the images that start first")
    group.add_argument("--round-iterations", type=cli.non_negative, help="ROUND_ITR; 0: all start at once")
    group.add_argument("--lr", type=cli.non_negative_float)
    group.add_argument("--r-bn", type=cli.non_negative_float, help="weight of the BatchNorm statistics")
    group.add_argument("--first-bn-multiplier", type=cli.non_negative_float, help="of the first BatchNorm's weight")
    group.add_argument(
        "--combine",
        choices=tuple(COMBINATIONS),
        help="several teachers: the mean of their losses, or one a step in turn",
    )
    group.add_argument("--jitter", type=cli.non_negative, metavar="PIXELS", help="random roll of each step's view")
    group.add_argument("--curriculum", choices=CURRICULA, help="how the crop shrinks")
    group.add_argument("--milestone", type=cli.fraction, help="share of ITR until the crop is smallest")
    group.add_argument("--min-crop", type=cli.positive_fraction, help="smallest share of the image in a crop")
    group.add_argument("--init", choices=("images", "noise"))
    group.add_argument("--batch-by", choices=("class", "index"))
    group.add_argument(
        "--option", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the method's objective"
    )


def chosen_method(parser: cli.Parser, flags: dict[str, Any]) -> tuple[str, Settings]:
    """What to call the method, and its settings. Raises UserError for an option that it does not have."""
    name = flags["method"]
    recipe = METHODS[name]
    given = {setting: flags[setting] for setting in recipe if setting in Settings.names()}
    options = {setting: value for setting, value in recipe.items() if setting not in Settings.names()}
    for text in flags["option"]:
        option, _, value = text.partition("=")
        if option not in options:
            known = ", ".join(options) or "none"
            parser.error(f"--option {text}: {name} has no such option; its options: {known}")
        try:
            given[option] = converted(value, type(options[option]))
        except ValueError as error:
            parser.error(f"--option {text}: '{value}' is not {error}")
    title, recipe = registry.with_changes(METHODS, name, given)
    return title, Settings.of(recipe)


def converted(text: str, kind: type) -> Any:
    """`text` as a value of this type. Raises ValueError, which names what is asked for."""
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("true or false")
        return text == "true"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError({int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")) from None
    if kind is float and not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def main() -> None:
    job = parse()
    settings, runtime, workers = job.settings, job.machine.runtime(), job.machine.workers
    teachers = job.teacher.load(job.geometry, job.init_dir, "--init-dir", workers)
    geometry = teachers[0].geometry  # of the pixels that are optimised
    if settings.init == "noise":
        starts = Starts.of_noise(job.init_dir, geometry, job.ipc, job.classes_by)
    else:
        starts = Starts.of_folder(job.init_dir, geometry, job.ipc, workers, job.classes_by)
    schedule = EarlyLate(starts.ipc, **settings.schedule)
    check_output(job.syn_dir)
    check_output(job.contact_sheet)
    if job.overwrite or not manifest.read(job.syn_dir).get("finished"):
        check_class_order(job, teachers, starts, runtime)

    with locked(job.syn_dir):
        least = starts.ipc if settings.batch_by == "class" else 1
        batch_size = unit_size(job, teachers, schedule, runtime, least)
        units = split(len(starts.classes), starts.ipc, batch_size, settings.batch_by)
        # Decided by all units, not by those that are left, so that a resumed run computes the same bytes.
        steps = settings.iterations * len(units)
        objective = OBJECTIVES[settings.objective](teachers, settings)
        found = {**identity(job, objective, geometry, runtime), "batch_size": batch_size}
        found |= {"ipc": starts.ipc, "init": starts.identity()}
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
            engine = Engine(objective, geometry, schedule, runtime, settings.jitter, steps)
            with explain_out_of_memory(batch_size, least):
                synthesise(job, engine, starts, synthetic_set, missing)
        finish(job, teachers, schedule, starts, synthetic_set, runtime)


def check_class_order(job: Job, teachers: list[Teacher], starts: Starts, runtime: Runtime) -> None:
    """Judge the order of the classes of teachers that do not say it themselves, by the starting images.

    Raises UserError where it cannot be theirs.
    """
    unsaid = [teacher for teacher in teachers if teacher.order is not None]
    if not unsaid or (sample := starts.sample()) is None:
        return
    for teacher in unsaid:
        images = EvalBatches(sample, teacher.geometry.input_size, workers=job.machine.workers, resize=resize_whole)
        network = frozen(copy.deepcopy(teacher.network), runtime)
        answers = Answers.to(images, network, teacher.geometry, runtime)
        class_order.check(answers, starts.classes, f"recover: {teacher.arch}", teacher.order)


def compare(job: Job, engine: Engine, images: torch.Tensor) -> None:
    """Raises UserError if the objective's networks say something else of the `images` than the teachers do.

    By then the objective has changed the teachers' networks, so they are read once more.
    """
    networks = engine.objective.networks()
    for teacher, prepared in zip(job.teacher.again(job.geometry, engine.geometry) if networks else [], networks):
        shown = teacher.geometry.renormalise(images, engine.geometry)
        Untouched.of(teacher.network, shown, engine.runtime).compare(prepared, teacher.arch)


def synthesise(job: Job, engine: Engine, starts: Starts, synthetic_set: SyntheticSet, missing: list[Unit]) -> None:
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
            )
            if done == 1:
                compare(job, engine, start.images[:COMPARED])
            recovery = Recovery(engine, start, job.seed, "recover", unit.number)
            with synthetic_set.state(unit, job.save_every) as state:
                pixels = (geometry.denormalise(recovery.run(report, state)) * 255).round().clamp(0, 255).byte()
                facts = [{"round": schedule.round_of[position]} for position in positions]
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


def unit_size(job: Job, teachers: list[Teacher], schedule: EarlyLate, runtime: Runtime, least: int) -> int:
    """Images of a unit: as asked, or the largest number that fits."""
    default, settings = max(BATCH_SIZE, least), job.settings

    def trial(images: int) -> None:
        """One step of a unit of so many images, all of them active."""
        objective = OBJECTIVES[settings.objective](copy.deepcopy(teachers), settings)
        short = replace(schedule, iterations=1, round_iterations=0)
        geometry = teachers[0].geometry
        engine = Engine(objective, geometry, short, replace(runtime, compile="off"), settings.jitter, 1)
        pixels = torch.zeros(images, 3, geometry.input_size, geometry.input_size)
        Recovery(engine, Start(pixels, torch.zeros(images, dtype=torch.long), [0] * images), "trial").step().item()

    if job.machine.finds_batch_size:
        work = {**settings.plain, **plain(teachers[0].geometry), **runtime.kind}
        work["teachers"] = [teacher.sha256 for teacher in teachers]
        return find_batch_size(default, least, job.syn_dir, trial, **work)
    return job.machine.batch_size or default


def identity(job: Job, objective: Objective, geometry: Geometry, runtime: Runtime) -> dict[str, Any]:
    """What decides the bytes of the result, but for the starting images: another identity is another run."""
    return {
        **job.settings.plain,
        **objective.identity(),
        **plain(geometry),
        "seed": job.seed,
        "image_format": job.image_format,
        "device": runtime.device.type,
        "precision": runtime.precision,
        "compile": job.machine.compile,
        **({"classes_by": job.classes_by} if job.classes_by != "name" else {}),
    }


if __name__ == "__main__":
    entry.run(main)
