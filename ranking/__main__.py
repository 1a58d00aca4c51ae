"""python -m ranking: score the real images, select those that start the synthesis."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

from ranking import score, select
from ranking.coreset import CORESETS
from utils import cli, features
from utils.checkpoints import Teacher
from utils.files import LOCKS, check_output, claim, digest, sha256, write_json
from utils.images import ImageFolder
from utils.loader import TestImages
from utils.runtime import Runtime
from utils.state import NoState, State


def parse() -> argparse.Namespace:
    parser = cli.Parser("ranking", "Score every image by the teacher's probability of its class; select --ipc a class.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder of the real images")
    parser.add_argument("--ranking-file", metavar="FILE.csv", help="scores: reused if the file is there, else written")
    parser.add_argument("--output-dir", metavar="DIR", help="ImageFolder of the selection (none if left out)")
    parser.add_argument("--criterion", choices=(*select.CRITERIA, *CORESETS), default="medium",
                        help="by the scores, or herding and k-center by the teacher's features")
    parser.add_argument("--ipc", type=cli.positive, default=10, help="images per class")
    cli.add_save_every(parser, "the scoring")
    cli.add_teacher(parser)
    cli.add_common(parser)
    parser.set_defaults(batch_size=256)
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
        check_output(args.output_dir, args.train_dir)
    if args.ranking_file:
        check_output(args.ranking_file)
    if args.criterion in CORESETS:
        chosen = coresets(args)
    else:
        # Random selection looks at no scores, so it needs neither a teacher nor a ranking file.
        table = unscored(folder) if args.criterion == "random" else ranked(args, folder)
        if not args.output_dir:
            return
        chosen = select.select_all(table, folder.classes, args.ipc, args.criterion, args.seed)
    settings = {"criterion": args.criterion, "ipc": args.ipc, "images": chosen}
    if args.criterion == "random":
        settings["seed"] = args.seed
    record = claim(args.output_dir, "manifest.json", settings, args.overwrite, args.train_dir)
    copied = select.copy(chosen, Path(args.train_dir), Path(args.output_dir))
    if record.get("finished") and not copied:
        print(f"ranking: {args.output_dir} holds this selection already")
        return
    seconds = round(time.monotonic() - started, 1)
    ranking_sha256 = sha256(args.ranking_file) if args.ranking_file and Path(args.ranking_file).exists() else None
    write_json(Path(args.output_dir) / "manifest.json", {
        "settings": settings, "train_dir": args.train_dir, "ranking_sha256": ranking_sha256, "seconds": seconds,
        "finished": True})
    print(f"ranking: {args.ipc} {args.criterion} images of each of {len(folder.classes)} classes in "
          f"{args.output_dir}; {seconds:.0f} s")


def ranked(args: argparse.Namespace, folder: ImageFolder) -> pd.DataFrame:
    """The scores: read from --ranking-file if it is there, else computed and written to it."""
    if args.ranking_file and Path(args.ranking_file).exists():
        table = score.read(args.ranking_file, folder)
        print(f"ranking: {len(table):,} scores from {args.ranking_file}")
        return table
    runtime, teacher, folder = prepared(args)
    identity = {"images": digest([folder.paths, folder.classes]), "teacher": teacher.sha256, "size": teacher.input_size,
                "mean": teacher.mean, "std": teacher.std, "batch_size": args.batch_size, "precision": runtime.precision,
                "compile": args.compile}
    if args.ranking_file:
        LOCKS.hold(args.ranking_file)
    with state_of(args, identity) as state:
        table = score.score(teacher, folder, runtime, args.batch_size, args.workers, state)
        if args.ranking_file:
            score.write(table, args.ranking_file)
    if args.ranking_file:
        print(f"ranking: mean score {table['score'].mean():.3f}; scores: {args.ranking_file}")
    return table


def state_of(args: argparse.Namespace, identity: dict) -> State:
    """Beside --ranking-file; scores that nobody keeps are not worth a file of their own."""
    if not args.ranking_file:
        return NoState()
    path = Path(args.ranking_file)
    return State(path.with_name(f".{path.name}.state"), identity, args.save_every)


def coresets(args: argparse.Namespace) -> dict[str, list[str]]:
    """Class -> chosen paths, by the teacher's features. One class's features are held at a time."""
    runtime, teacher, folder = prepared(args)
    images = TestImages(folder, teacher.input_size, args.batch_size, args.workers)
    model = runtime.frozen(features.extractor(teacher.model))
    found = {}
    for label, rows in features.by_class(model, teacher, images, runtime, "features"):
        paths = folder.of_class(label)
        found[folder.classes[label]] = [paths[index] for index in CORESETS[args.criterion](rows, args.ipc)]
    return found


def prepared(args: argparse.Namespace) -> tuple[Runtime, Teacher, ImageFolder]:
    """The teacher, and the train folder in its label order, every image decoded once."""
    runtime = cli.runtime(args)
    teacher = cli.teacher(args, args.train_dir, "--train-dir")
    folder = cli.folder_for(teacher, args.train_dir, "--train-dir")
    folder.load(args.workers)
    print(f"ranking: {len(folder):,} images by {teacher.arch} ({teacher.input_size} px), {runtime}")
    return runtime, teacher, folder


def unscored(folder: ImageFolder) -> pd.DataFrame:
    return pd.DataFrame({"img_path": folder.paths, "class": [folder.classes[i] for i in folder.labels], "score": 0.0})


if __name__ == "__main__":
    cli.run(main)
