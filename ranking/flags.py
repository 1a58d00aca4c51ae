"""The command line of ranking."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranking.criteria import CRITERIA, Criterion
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data.geometry import GeometryFlags
from utils.data.manifest import KEEP
from utils.run.outputs import beside

BATCH_SIZE = 256


@dataclass(frozen=True)
class PatchFlags:
    """What is chosen among, and what an output image is made of: whole images, one each, unless they say more."""

    candidates: int | None  # images of each class, at random; all if None
    crops: int  # of each image, at random; 0: whole images
    tiles: int  # along a side of an output image

    @property
    def per_image(self) -> int:
        """What an image gives to choose from."""
        return max(self.crops, 1)

    @property
    def in_output(self) -> int:
        """How many of them an output image takes."""
        return self.tiles**2

    @property
    def makes_images(self) -> bool:
        """Whether outputs are new images, and not copies."""
        return bool(self.crops) or self.tiles > 1


@dataclass(frozen=True)
class Job:
    """The command line."""

    train_dir: str
    ranking_file: str | None  # None too where the criterion reads no scores
    output_dir: str | None
    criterion: str
    ipc: int
    short_classes: str
    seed: int
    overwrite: bool
    patches: PatchFlags
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags

    @property
    def chooses(self) -> Criterion:
        return CRITERIA[self.criterion]

    @property
    def needed(self) -> int:
        """What is to be chosen in each class."""
        return self.ipc * self.patches.in_output

    @property
    def scores_all(self) -> bool:
        """Whether all images are scored, as a ranking file has them, whoever are the candidates."""
        return bool(self.ranking_file) and not self.patches.crops

    @property
    def drawn(self) -> dict[str, Any]:
        """What decides, beside the images, which of them and which crops the teacher sees; empty for all images."""
        found = {"candidates": self.patches.candidates, "seed": self.seed}
        if self.patches.crops:
            return {**found, "crops": self.patches.crops, "tiles": self.patches.tiles}
        return found if self.patches.candidates and not self.scores_all else {}

    @property
    def output(self) -> Path:
        """What the work is for; its pieces lie beside it."""
        return Path(self.ranking_file or self.output_dir)

    @property
    def has_ranking(self) -> bool:
        return bool(self.ranking_file) and Path(self.ranking_file).exists()

    @property
    def parts(self) -> Path:
        return beside(self.output, "parts")


def parse() -> Job:
    parser = cli.Parser("ranking", "Score every image by the teacher's probability of its class; select --ipc a class.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder of the real images")
    parser.add_argument(
        "--ranking-file",
        metavar="FILE.csv",
        help="scores: reused if the file is there, else written; nothing where --criterion reads none",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="ImageFolder of the selection (none if left out)")
    parser.add_argument(
        "--criterion",
        choices=tuple(CRITERIA),
        default="medium",
        help="by the scores, k-center and herding by the teacher's features; easy-herding: of the easier half",
    )
    parser.add_argument("--ipc", type=cli.positive, default=10, help="images per class")
    parser.add_argument(
        "--short-classes",
        choices=("error", "repeat", KEEP),
        default="error",
        help="where a class has fewer than --ipc images: stop, select them again in their order, or select those that "
        "are there (validate takes such a set, recover needs as many of each class)",
    )
    group = parser.add_argument_group("collages", "the selection is copied as it is without --crops and --tiles")
    group.add_argument(
        "--candidates",
        type=count_or_times,
        metavar="N",
        help="choose among N images of each class at random; 2x: twice as many as it takes; 300+: 300, or as many as "
        "it takes if these are more; all if few",
    )
    group.add_argument(
        "--crops",
        type=cli.non_negative,
        default=0,
        metavar="N",
        help="make each image N random square crops, of which the best scored stands for it; 0: whole images",
    )
    group.add_argument(
        "--tiles", type=cli.positive, default=1, metavar="F", help="put F x F of those chosen into each output image"
    )
    cli.add_teacher(parser)
    cli.add_common(parser, f"images per batch; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    args.candidates = in_number(args.candidates, args.ipc * args.tiles**2, args.crops)
    if not args.ranking_file and not args.output_dir:
        parser.error("nothing to do: give --ranking-file, --output-dir or both")
    if not _reads_scores(args) and not args.output_dir:
        parser.error(f"--criterion {args.criterion} scores nothing: give --output-dir")
    if args.ranking_file and not _reads_scores(args):
        # Said, and no error: scripts give one file to each of their criteria.
        print(f"ranking: {args.criterion} reads no scores: --ranking-file {args.ranking_file} is left as it is")
        args.ranking_file = None
    job = cli.group(args, Job)
    _check_candidates(parser, job)
    return job


def _reads_scores(args: argparse.Namespace) -> bool:
    """Whether a ranking file can be of use."""
    return CRITERIA[args.criterion].needs == "scores"


def count_or_times(text: str) -> int | str:
    """A number of images; with an x behind it how many times those that are needed, with a + at least these."""
    return f"{cli.positive(text[:-1])}{text[-1]}" if text.endswith(("x", "+")) else cli.positive(text)


def in_number(candidates: int | str | None, needed: int, crops: int) -> int | None:
    """Times are of the images that suffice for what is `needed`, where each gives `crops` crops, or itself."""
    if not isinstance(candidates, str):
        return candidates
    number, suffice = int(candidates[:-1]), math.ceil(needed / max(crops, 1))
    return number * suffice if candidates.endswith("x") else max(number, suffice)


def _check_candidates(parser: cli.Parser, job: Job) -> None:
    patches = job.patches
    if patches.candidates and patches.candidates * patches.per_image < job.needed and job.short_classes == "error":
        least = -(-job.needed // patches.per_image)
        parser.error(f"--candidates {patches.candidates} are too few: {job.needed} are chosen; give {least} or more")
