"""python -m ranking: score the real images, select those that start the synthesis."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ranking import record, score, selection
from ranking.criteria import CRITERIA, Candidates, Criterion
from ranking.existing import Existing
from ranking.score import Scorer
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data import manifest
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.data.manifest import KEEP, MANIFEST
from utils.fit.batch_size import find_batch_size, try_evaluation
from utils.nets import class_order
from utils.nets.class_order import Answers
from utils.nets.features import FeatureReader, extractor
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.device import Runtime
from utils.run.distributed import rank_from_environment
from utils.run.errors import UserError
from utils.run.files import digest, flush_folder, sha256, write_json
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_folder, check_output, claim, locked
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch

BATCH_SIZE = 256
GO_ON = "--short-classes repeat or keep to go on with those that are there"


@dataclass(frozen=True)
class Job:
    """The command line."""

    train_dir: str
    ranking_file: str | None
    output_dir: str | None
    criterion: str
    ipc: int
    short_classes: str
    seed: int
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags

    @property
    def chooses(self) -> Criterion:
        return CRITERIA[self.criterion]

    @property
    def output(self) -> Path:
        """What the work is for; its pieces lie beside it."""
        return Path(self.output_dir if self.chooses.needs == "features" or not self.ranking_file else self.ranking_file)

    @property
    def parts(self) -> Path:
        return self.output.with_name(f".{self.output.name}.parts")


@dataclass(frozen=True)
class Choice:
    """What is selected."""

    images: dict[str, list[str]]  # class -> paths, position 0 first
    seconds: float  # of the scores or features that it is by, in all processes
    request: str | None = None  # with a criterion by features: the digest of all that decided it


def parse() -> Job:
    parser = cli.Parser("ranking", "Score every image by the teacher's probability of its class; select --ipc a class.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder of the real images")
    parser.add_argument("--ranking-file", metavar="FILE.csv", help="scores: reused if the file is there, else written")
    parser.add_argument("--output-dir", metavar="DIR", help="ImageFolder of the selection (none if left out)")
    parser.add_argument(
        "--criterion",
        choices=tuple(CRITERIA),
        default="medium",
        help="by the scores, or herding and k-center by the teacher's features",
    )
    parser.add_argument("--ipc", type=cli.positive, default=10, help="images per class")
    parser.add_argument(
        "--short-classes",
        choices=("error", "repeat", KEEP),
        default="error",
        help="where a class has fewer than --ipc images: stop, select them again in their order, or select those that "
        "are there (validate takes such a set, recover needs as many of each class)",
    )
    cli.add_teacher(parser)
    cli.add_common(parser, f"images per batch; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    if not args.ranking_file and not args.output_dir:
        parser.error("nothing to do: give --ranking-file, --output-dir or both")
    if CRITERIA[args.criterion].needs == "features" and not args.output_dir:
        parser.error(f"--criterion {args.criterion} scores nothing: give --output-dir")
    return Job(
        train_dir=args.train_dir,
        ranking_file=args.ranking_file,
        output_dir=args.output_dir,
        criterion=args.criterion,
        ipc=args.ipc,
        short_classes=args.short_classes,
        seed=args.seed,
        overwrite=args.overwrite,
        teacher=cli.group(args, TeacherFlags),
        geometry=cli.group(args, GeometryFlags),
        machine=cli.group(args, MachineFlags),
    )


def main() -> None:
    clock = Stopwatch()
    job = parse()
    folder = ImageFolder(job.train_dir, "--train-dir")
    if job.output_dir:
        if job.short_classes == "error":
            folder.require(job.ipc, f"give at most --ipc {folder.fewest()}, or {GO_ON}")
        check_folder(job.output_dir, MANIFEST, job.train_dir)
    if job.ranking_file:
        check_output(job.ranking_file)
        if job.chooses.needs == "scores":
            record.read(job.ranking_file)  # for its errors: what is no record is not written over
    with contextlib.ExitStack() as locks:
        if job.output_dir:
            locks.enter_context(locked(job.output_dir))
        is_there = existing_ranking(job)
        replaces = is_there and job.chooses.needs == "scores" and existing(job).is_others(job.overwrite)
        # A ranking file that serves is only read, perhaps by several at a time.
        if job.ranking_file and (replaces or not is_there):
            locks.enter_context(locked(job.ranking_file))
        if replaces:
            Path(job.ranking_file).unlink(missing_ok=True)
        select = by_features if job.chooses.needs == "features" else by_scores
        choice = select(job, folder, clock)
        if choice is not None:
            write_selection(job, choice, clock)
            remove_parts(job)


def by_scores(job: Job, folder: ImageFolder, clock: Stopwatch) -> Choice | None:
    """What the criterion chooses by the scores.

    None where nothing is to be selected, or another process will do so.
    """
    table = scores(job, folder, clock)
    if table is None or not job.output_dir:
        if table is not None:
            remove_parts(job)
        return None
    rows = {name: group for name, group in table.groupby("class")}
    counts = {name: len(rows.get(name, ())) for name in folder.classes}
    least = job.ipc if job.short_classes == "error" else 1
    if few := [f"{name} ({n})" for name, n in counts.items() if n < least]:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        advice = f"at most {min(counts.values())} can be selected" + (
            f", or give {GO_ON}" if min(counts.values()) else ""
        )
        raise UserError(f"--ipc {job.ipc}: too few images in class {', '.join(few[:5])}{more}; {advice}")
    chosen = {}
    for name in folder.classes:
        stream = (job.seed, "random selection", name)
        images = Candidates(rows[name]["img_path"].tolist(), stream, rows[name]["score"].tolist())
        chosen[name] = choose(job, images)
    return Choice(chosen, table.attrs.get("seconds", 0.0))


def choose(job: Job, images: Candidates) -> list[str]:
    """The selected paths of a class, position 0 first; of a class with fewer than --ipc as --short-classes says."""
    found = [images.paths[index] for index in job.chooses.choose(images, min(job.ipc, len(images.paths)))]
    if job.short_classes == "repeat":
        found = [found[position % len(found)] for position in range(job.ipc)]
    return found


def scores(job: Job, folder: ImageFolder, clock: Stopwatch) -> pd.DataFrame | None:
    """The scores: read from --ranking-file if it is there, else computed and written to it.

    Their `attrs["seconds"]` say how long they took, where that is known. None where other processes have not done
    their pieces yet, or will select.
    """
    rank, _ = rank_from_environment()
    if rank and (job.chooses.needs == "nothing" or existing_ranking(job)):
        print("ranking: nothing to score; rank 0 makes the selection")
        return None
    if job.chooses.needs == "nothing":  # neither a teacher nor a ranking file
        classes = [folder.classes[label] for label in folder.labels]
        return pd.DataFrame({"img_path": folder.paths, "class": classes, "score": 0.0})
    if existing_ranking(job):
        return existing(job).table(folder)
    runtime, teacher, folder, batch_size = prepare(job)
    machine = job.machine
    scorer = Scorer(
        frozen(teacher.network, runtime, teacher),
        teacher.geometry,
        runtime,
        batch_size,
        machine.workers,
        machine.finds_batch_size,
        clock,
    )
    with explain_out_of_memory(batch_size):
        settings = record.settings_of(teacher, folder)
        wanted = identity(job, settings, runtime, batch_size)

        def judge(answers: Answers) -> None:
            try:
                class_order.check(answers, folder.classes, f"ranking: {teacher.arch}", teacher.order)
            except UserError:
                remove_parts(job)  # of no use in another order
                raise

        table = scorer.score(folder, job.parts, wanted, lambda: existing_ranking(job), judge)
    if table is None:
        print("ranking: this process has done its pieces; the scores follow when all are done")
    elif job.ranking_file:
        about = {"arch": teacher.arch, "train_dir": job.train_dir, "precision": runtime.precision}
        seconds = round(table.attrs["seconds"], 1)
        score.write(table, job.ranking_file, {"settings": settings, **about, "seconds": seconds})
        print(f"ranking: mean score {table['score'].mean():.3f}; scores: {job.ranking_file}")
    return table


def by_features(job: Job, folder: ImageFolder, clock: Stopwatch) -> Choice | None:
    """What the criterion chooses by the teacher's features.

    One class's features are held at a time. None where other processes have not done their classes yet.
    """
    runtime, teacher, folder, batch_size = prepare(job, check=False)
    wanted = {
        **identity(job, record.settings_of(teacher, folder), runtime, batch_size),
        "criterion": job.criterion,
        "ipc": job.ipc,
    }
    if job.short_classes != "error":
        wanted["short_classes"] = job.short_classes
    request = digest(wanted)
    if (chosen := existing_selection(job, folder, request)) is not None:
        return Choice(chosen, 0.0, request)
    check_images(job, folder, teacher, runtime)
    reader = FeatureReader(
        frozen(extractor(teacher.network), runtime, teacher),
        teacher.geometry,
        runtime,
        batch_size,
        job.machine.workers,
        may_split=job.machine.finds_batch_size,
    )

    def is_done(label: int) -> bool:
        return work.record(label) is not None or existing_selection(job, folder, request) is not None

    with explain_out_of_memory(batch_size), SharedWork(job.parts, wanted, len(folder.classes), is_done) as work:
        for label, features in reader.by_class(folder, "features", work.take()):
            stream = (job.seed, "random selection", folder.classes[label])
            images = Candidates(folder.of_class(label), stream, features=features)
            work.save(label, {"chosen": choose(job, images), "seconds": clock.lap()})
        found = work.records()
    if found is None:
        print("ranking: this process has done its classes; the selection follows when all are done")
        return None
    chosen = {name: entry["chosen"] for name, entry in zip(folder.classes, found)}
    return Choice(chosen, sum(entry.get("seconds", 0.0) for entry in found), request)


def prepare(job: Job, check: bool = True) -> tuple[Runtime, Teacher, ImageFolder, int]:
    """The machine, the teacher, the train folder in its label order, and the batch size."""
    runtime = job.machine.runtime()
    [teacher] = job.teacher.load(job.geometry, job.train_dir, "--train-dir", job.machine.workers)
    folder = cli.folder_for(teacher.geometry, job.train_dir, "--train-dir")

    def trial(images: int) -> None:
        network = frozen(copy.deepcopy(teacher.network), runtime)
        try_evaluation(network, images, teacher.geometry.input_size, runtime)

    batch_size = job.machine.batch_size or BATCH_SIZE
    if job.machine.finds_batch_size:
        work = {"teacher": teacher.sha256, "size": teacher.geometry.input_size, **runtime.kind}
        batch_size = find_batch_size(BATCH_SIZE, 1, job.output, trial, **work)
    if check:
        check_images(job, folder, teacher, runtime)
    return runtime, teacher, folder, batch_size


def check_images(job: Job, folder: ImageFolder, teacher: Teacher, runtime: Runtime) -> None:
    """Decode the images once, before the long work; of several processes each a part."""
    folder.check(job.machine.workers)
    print(f"ranking: {len(folder):,} images by {teacher.arch} ({teacher.geometry.input_size} px), {runtime}")


def identity(job: Job, settings: dict, runtime: Runtime, batch_size: int) -> dict:
    """Everything that decides what the teacher says of the images, to the last bit."""
    return {**settings, "batch_size": batch_size, "precision": runtime.precision, "compile": job.machine.compile}


def write_selection(job: Job, choice: Choice, clock: Stopwatch) -> None:
    """Copy the chosen images, and say in the manifest how they were chosen, and which bytes they have."""
    settings = {"criterion": job.criterion, "ipc": job.ipc, "images": choice.images}
    if job.criterion == "random":
        settings["seed"] = job.seed
    if job.short_classes != "error":
        settings["short_classes"] = job.short_classes
        say_short_classes(job, choice.images)
    found = claim(job.output_dir, MANIFEST, settings, job.overwrite, job.train_dir)
    path, before = Path(job.output_dir) / MANIFEST, choice.seconds
    if "seconds" in found:  # of an earlier process, which had those of the scores
        before = manifest.seconds(found)
    try:
        copied, digests = selection.copy(choice.images, Path(job.train_dir), Path(job.output_dir))
    except BaseException:
        with contextlib.suppress(OSError):
            write_json(path, {**found, "seconds": round(before + clock.lap(), 1)})
        raise
    if found.get("finished") and not copied and found.get("sha256") == digests:
        print(f"ranking: {job.output_dir} is complete")
        return
    seconds = round(before + clock.lap(), 1)
    content = {
        "settings": settings,
        "train_dir": job.train_dir,
        "dataset": job.geometry.dataset,
        "ranking_sha256": sha256(job.ranking_file) if existing_ranking(job) else None,
        "request": choice.request,
        "seconds": seconds,
        "sha256": digests,
        "finished": True,
    }
    flush_folder(job.output_dir)  # what the manifest is going to say is there
    write_json(path, content)
    print(
        f"ranking: {job.ipc} {job.criterion} images of each of {len(choice.images)} classes in {job.output_dir}; "
        f"{seconds:.0f} s"
    )


def say_short_classes(job: Job, chosen: dict[str, list[str]]) -> None:
    short = [f"{name} ({len(set(paths))})" for name, paths in chosen.items() if len(set(paths)) < job.ipc]
    if short:
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        done = "their images are repeated" if job.short_classes == "repeat" else "what they have is selected"
        print(f"ranking: fewer than {job.ipc} images in class {', '.join(short[:5])}{more}: {done}")


def existing_selection(job: Job, folder: ImageFolder, request: str) -> dict[str, list[str]] | None:
    """What is on disk of this very choice by features, once it is complete.

    Raises UserError where that cannot be what was chosen, unless it is to be overwritten.
    """
    record = manifest.read(job.output_dir)
    if record.get("finished") is not True or record.get("request") != request:
        return None
    settings = record.get("settings")
    chosen = settings.get("images") if isinstance(settings, dict) else None
    fault = selection.fault(chosen, folder, job.ipc, repeats=job.short_classes == "repeat")
    if fault is None:
        return {name: chosen[name] for name in folder.classes}
    if job.overwrite:
        return None
    raise UserError(
        f"{Path(job.output_dir) / MANIFEST}: {fault}; it was changed or damaged: give --overwrite to select anew"
    )


def existing_ranking(job: Job) -> bool:
    return bool(job.ranking_file) and Path(job.ranking_file).exists()


def existing(job: Job) -> Existing:
    return Existing(job.ranking_file, job.train_dir, job.teacher, job.geometry, job.machine)


def remove_parts(job: Job) -> None:
    """Remove what the work left beside its output, also where a process was killed after the output was complete."""
    SharedWork(job.parts, {}, 0).remove()
    if existing_ranking(job):
        with contextlib.suppress(UserError), locked(job.ranking_file):  # a lock that a killed process left
            pass


if __name__ == "__main__":
    entry.run(main)
