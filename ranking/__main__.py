"""python -m ranking: score the real images, select those that start the synthesis."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import pandas as pd

from ranking import score, select
from ranking.coreset import CORESETS
from ranking.parts import Parts
from utils import cli, features, memory
from utils.checkpoints import Teacher
from utils.files import LOCKS, MANIFEST, check_folder, check_output, claim, digest, read_json, sha256, write_json
from utils.images import ImageFolder
from utils.ranks import rank_and_world
from utils.runtime import Runtime


def parse() -> argparse.Namespace:
    parser = cli.Parser("ranking", "Score every image by the teacher's probability of its class; select --ipc a class.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder of the real images")
    parser.add_argument("--ranking-file", metavar="FILE.csv", help="scores: reused if the file is there, else written")
    parser.add_argument("--output-dir", metavar="DIR", help="ImageFolder of the selection (none if left out)")
    parser.add_argument("--criterion", choices=(*select.CRITERIA, *CORESETS), default="medium",
                        help="by the scores, or herding and k-center by the teacher's features")
    parser.add_argument("--ipc", type=cli.positive, default=10, help="images per class")
    cli.add_teacher(parser)
    cli.add_common(parser, "images per batch; 256 if left out")
    args = parser.parse_args()
    if not args.ranking_file and not args.output_dir:
        parser.error("nothing to do: give --ranking-file, --output-dir or both")
    if args.criterion in CORESETS and not args.output_dir:
        parser.error(f"--criterion {args.criterion} scores nothing: give --output-dir")
    return args


def main() -> None:
    args = parse()
    started = time.monotonic()
    folder = ImageFolder(args.train_dir, "--train-dir")
    if args.output_dir:
        folder.require(args.ipc)
        check_folder(args.output_dir, MANIFEST, args.train_dir)
    if args.ranking_file:
        check_output(args.ranking_file)
    if args.criterion in CORESETS:
        chosen, parts, request = coresets(args)
    else:
        request = None
        table, parts = scores(args, folder)
        chosen = None if table is None or not args.output_dir else \
            select.select_all(table, folder.classes, args.ipc, args.criterion, args.seed)
    if chosen is not None:
        write_selection(args, chosen, request, started)
    if parts:
        parts.remove()


def write_selection(args: argparse.Namespace, chosen: dict[str, list[str]], request: str | None, started: float) -> None:
    """Copy the chosen images, and say in the manifest by which `request` they were found."""
    settings = {"criterion": args.criterion, "ipc": args.ipc, "images": chosen}
    if args.criterion == "random":
        settings["seed"] = args.seed
    record = claim(args.output_dir, MANIFEST, settings, args.overwrite, args.train_dir)
    copied = select.copy(chosen, Path(args.train_dir), Path(args.output_dir))
    if record.get("finished") and not copied:
        print(f"ranking: {args.output_dir} holds this selection already")
        return
    seconds = round(time.monotonic() - started, 1)
    ranking_sha256 = sha256(args.ranking_file) if args.ranking_file and Path(args.ranking_file).exists() else None
    write_json(Path(args.output_dir) / MANIFEST, {
        "settings": settings, "train_dir": args.train_dir, "ranking_sha256": ranking_sha256, "request": request,
        "seconds": seconds, "finished": True})
    print(f"ranking: {args.ipc} {args.criterion} images of each of {len(chosen)} classes in {args.output_dir}; {seconds:.0f} s")


def scores(args: argparse.Namespace, folder: ImageFolder) -> tuple[pd.DataFrame | None, Parts | None]:
    """The scores: read from --ranking-file if it is there, else computed and written to it; and parts to be removed.

    None where another rank has the selection to make.
    """
    rank, world = rank_and_world()
    # Random selection looks at no scores, so it needs neither a teacher nor a ranking file.
    if args.criterion == "random":
        return unscored(folder) if rank == 0 else None, None
    if args.ranking_file and Path(args.ranking_file).exists():
        if rank:
            return None, None
        table = score.read(args.ranking_file, folder)
        print(f"ranking: {len(table):,} scores from {args.ranking_file}")
        return table, None
    LOCKS.hold(args.ranking_file or args.output_dir)
    apply = memory.way(args.batch_size)
    runtime, teacher, folder = prepared(args)
    check(args, folder, teacher, runtime)
    parts = Parts(args.ranking_file or args.output_dir, identity(args, folder, teacher, runtime))
    with memory.guarded(args.batch_size):
        table = score.score(teacher, folder, runtime, args.batch_size, args.workers, parts, apply)
    if table is None:
        print(f"ranking: rank {rank} of {world} has done its parts; the scores follow when all ranks have")
        return None, None
    if args.ranking_file:
        score.write(table, args.ranking_file)
        print(f"ranking: mean score {table['score'].mean():.3f}; scores: {args.ranking_file}")
    return table, parts


def coresets(args: argparse.Namespace) -> tuple[dict[str, list[str]] | None, Parts | None, str]:
    """Class -> chosen paths, by the teacher's features; parts to be removed; and what names this choice.

    One class's features are held at a time. None where other ranks have not done their classes yet.
    """
    rank, world = rank_and_world()
    LOCKS.hold(args.output_dir)
    apply = memory.way(args.batch_size)
    runtime, teacher, folder = prepared(args)
    wanted = {**identity(args, folder, teacher, runtime), "criterion": args.criterion, "ipc": args.ipc}
    request = digest(wanted)
    manifest = Path(args.output_dir) / MANIFEST
    if manifest.exists() and (record := read_json(manifest)).get("finished") and record.get("request") == request:
        return record["settings"]["images"], None, request
    check(args, folder, teacher, runtime)
    parts = Parts(args.output_dir, wanted)
    choose = CORESETS[args.criterion]
    model = runtime.frozen(features.extractor(teacher.model))
    with memory.guarded(args.batch_size):
        for label, rows in features.by_class(model, teacher, folder, runtime, "features", args.batch_size, args.workers,
                                             labels=parts.missing(len(folder.classes)), apply=apply):
            parts.save(label, {"chosen": choose(rows, args.ipc)})
    found = parts.all(len(folder.classes))
    if found is None:
        print(f"ranking: rank {rank} of {world} has done its classes; the selection follows when all ranks have")
        return None, None, request
    return {name: [folder.of_class(label)[index] for index in found[label]["chosen"]]
            for label, name in enumerate(folder.classes)}, parts, request


def identity(args: argparse.Namespace, folder: ImageFolder, teacher: Teacher, runtime: Runtime) -> dict:
    """Everything that decides what the teacher says of the images."""
    return {"images": digest([folder.paths, folder.classes]), "teacher": teacher.sha256, "size": teacher.input_size,
            "mean": teacher.mean, "std": teacher.std, "batch_size": args.batch_size, "precision": runtime.precision,
            "compile": args.compile}


def prepared(args: argparse.Namespace) -> tuple[Runtime, Teacher, ImageFolder]:
    """The teacher, and the train folder in its label order."""
    runtime = cli.runtime(args)
    teacher = cli.teacher(args, args.train_dir, "--train-dir")
    folder = cli.folder_for(teacher, args.train_dir, "--train-dir")

    def trial(images: int) -> None:
        memory.evaluation(runtime.frozen(copy.deepcopy(teacher.model)), images, teacher.input_size, runtime)

    args.batch_size = memory.fitting(args.batch_size, 256, 1, args.ranking_file or args.output_dir, trial)
    return runtime, teacher, folder


def check(args: argparse.Namespace, folder: ImageFolder, teacher: Teacher, runtime: Runtime) -> None:
    """Decode the images once, before the long work."""
    folder.check(args.workers)
    print(f"ranking: {len(folder):,} images by {teacher.arch} ({teacher.input_size} px), {runtime}")


def unscored(folder: ImageFolder) -> pd.DataFrame:
    return pd.DataFrame({"img_path": folder.paths, "class": [folder.classes[i] for i in folder.labels], "score": 0.0})


if __name__ == "__main__":
    cli.run(main)
