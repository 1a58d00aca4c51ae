"""python -m validate.report.diversity DIR...: how alike the images of a class are; lower is more diverse.

For each class the mean cosine similarity between all pairs of its images in a network's penultimate features (DELT,
arXiv 2411.19946, section 4.4), of images as they stand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import pandas as pd
import torch
from torch.nn.functional import normalize

from utils import cli
from utils.data.class_folders import by_position
from utils.data.geometry import GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.data.images import resize_whole
from utils.data.manifest import Manifest, of_own_images
from utils.nets.features import FeatureReader, extractor
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import entry
from utils.run.errors import UserError, first_line
from utils.run.files import write_text
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import check_output
from validate.report import figures
from validate.report.collect import Measured, left_out, told_apart

FILE = "diversity.csv"
COLUMNS = ["method", "class", "images", "similarity", "extractor", "syn_dir", "set", "extractor_sha256"]
LATER = ["set", "extractor_sha256"]  # what tables of earlier versions do not have
EXTRACTOR = ["extractor", "extractor_sha256"]
UNIQUE = ["method", "class", "syn_dir", "set", *EXTRACTOR]
BATCH_SIZE = 256


def similarity(features: torch.Tensor) -> float:
    """The mean cosine similarity of all pairs among the rows of `features` (n, D), n of 2 or more."""
    count = len(features)
    total = normalize(features.double(), dim=1).sum(0)
    # The squared length of the sum holds every pair twice, and each row with itself, which is 1.
    return float((total @ total - count) / (count * (count - 1)))


def read(path: str | Path) -> pd.DataFrame:
    """The table that this module writes; what an earlier version did not say is empty. Raises UserError for others."""
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(UNIQUE, str), keep_default_na=False)
        table = table.assign(**{name: "" for name in LATER if name not in table})
        table["similarity"] = table["similarity"].astype(float)
        table = table[COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
    else:
        if len(table):
            return table
        reason = "it has no rows"
    raise UserError(f"{path}: is no table of diversity ({reason}); run `python -m validate.report.diversity` again")


def of_run(run: str | Path) -> pd.DataFrame | None:
    """What was measured of a run's sets: together, or each in a folder of its own below `diversity`; None if nothing.

    A file that is no such table is left out, as a line says.
    """
    paths = [
        path for path in (Path(run) / FILE, *sorted((Path(run) / "diversity").glob(f"*/{FILE}"))) if path.is_file()
    ]
    tables = []
    for path in paths:
        with left_out("a table of diversity"):
            tables.append(read(path))
    return pd.concat(tables).drop_duplicates(UNIQUE) if tables else None


def of_folder(table: pd.DataFrame, syn_dir: str) -> pd.Series:
    """Which rows are of the images in a folder, at the time when these were measured."""
    places = {syn_dir, os.path.abspath(syn_dir)}
    return table["syn_dir"].map(lambda path: path in places or os.path.abspath(path) in places)


def stale(table: pd.DataFrame, measured: Sequence[Measured]) -> pd.Series:
    """Which rows are of other images than those that students were trained on, as far as this is known.

    Where a set was made anew and measured again, these are the images that are there now.
    """
    found = pd.Series(False, table.index)
    for folder in dict.fromkeys(one.syn_dir for one in measured if one.set_digest):
        of_it = [one for one in measured if one.syn_dir == folder and one.set_digest]
        digests = {one.set_digest for one in of_it if one.is_there} or {one.set_digest for one in of_it}
        found |= of_folder(table, folder) & ~table["set"].isin({*digests, ""})
    return found


def extractors(table: pd.DataFrame) -> set[tuple[str, str]]:
    """Architecture and SHA-256 of the networks in whose features the rows were measured.

    What an earlier version did not say of one is taken to be what others of that architecture say.
    """
    found = set(table[EXTRACTOR].itertuples(index=False, name=None))
    return {(arch, sha) for arch, sha in found if sha or not any(one == arch and more for one, more in found)}


def of_images(table: pd.DataFrame, digest: str | None) -> pd.DataFrame:
    """The rows of images with this digest; where there are none, those that do not say of which images they are."""
    exact = table if digest is None else table[table["set"] == digest]
    return exact if len(exact) else table[table["set"] == ""]


@dataclass(frozen=True)
class Flags:
    syn_dir: tuple[str, ...]
    method: tuple[str, ...]  # one for each folder
    classes_by: str  # name or position
    output_dir: str
    teacher: cli.TeacherFlags
    geometry: GeometryFlags
    machine: cli.MachineFlags


def parse() -> Flags:
    parser = cli.Parser(
        "validate.report.diversity",
        "Mean cosine similarity of the pairs of images of each class; lower is more diverse. The extractor is the "
        "teacher or any other checkpoint, of these classes or not.",
    )
    parser.add_argument("syn_dir", nargs="+", metavar="DIR", help="ImageFolders with the same classes")
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help="one name for each DIR, completed as validate does; the method in its manifest, or the folder's name, if "
        "left out",
    )
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets diversity.csv and diversity.png")
    cli.add_classes_by(parser, "each DIR", "the first")
    cli.add_teacher(parser)
    cli.add_data(parser, f"images per batch; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    folders = tuple(args.syn_dir)
    methods = tuple(args.method or told_apart([(_own_name(path), path) for path in folders]))
    if len(methods) != len(folders):
        parser.error(f"{len(folders)} folders need {len(folders)} --method names, not {len(methods)}")
    methods = tuple(Manifest.of(folder).full_name(name) for folder, name in zip(folders, methods))
    if len(set(methods)) < len(methods):
        parser.error(f"the --method names must differ ({', '.join(methods)})")
    return cli.group(args, Flags, method=methods)


def _own_name(folder: str) -> str:
    return Manifest.of(folder).method or Path(folder).resolve().name


def main() -> None:
    flags = parse()
    folders = read_folders(flags.syn_dir, flags.classes_by)
    output = Path(flags.output_dir) / FILE
    check_output(output)
    for folder in folders:
        folder.load(flags.machine.workers, alone=True)
    [teacher] = flags.teacher.load(flags.geometry, flags.syn_dir[0], "DIR", flags.syn_dir)
    reader = feature_reader(teacher, flags.machine, output)
    with explain_out_of_memory(reader.batch_size):
        rows = [row for pair in zip(flags.method, folders) for row in measure(reader, teacher, *pair)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_text(output, table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    figures.save(output.with_suffix(".png"), lambda: figures.diversity(table))
    for method, group in table.groupby("method", sort=False):
        found = group["similarity"]
        extent = f"{found.min():.4f} to {found.max():.4f}"
        print(f"diversity: {method}: {found.mean():.4f} over {len(group)} classes ({extent})")
    print(f"diversity: {output}, {output.with_suffix('.png')}")


def read_folders(paths: tuple[str, ...], classes_by: str = "name") -> list[ImageFolder]:
    """Raises UserError where their classes differ, or one has a single image."""
    if classes_by == "position":
        first = by_position(paths[0], "DIR", None)
        folders = [first, *(by_position(path, "DIR", first.classes) for path in paths[1:])]
    else:
        classes = ImageFolder(paths[0], "DIR").classes
        folders = [ImageFolder(path, "DIR", classes, paths[0]) for path in paths]
    for folder in folders:
        if folder.fewest() < 2:
            raise UserError(f"{folder.root}: has a class of a single image; diversity is measured between two or more")
    return folders


def feature_reader(teacher: Teacher, machine: cli.MachineFlags, output: Path) -> FeatureReader:
    """What reads the teacher's features; its batch size is found by trying if that is asked for."""
    runtime = machine.runtime()
    size = machine.batch_size_for(teacher, BATCH_SIZE, output, runtime)
    network = frozen(extractor(teacher.network), runtime, teacher)
    may_split = machine.finds_batch_size
    return FeatureReader(network, teacher.geometry, runtime, size, machine.workers, resize_whole, may_split=may_split)


def measure(reader: FeatureReader, teacher: Teacher, method: str, folder: ImageFolder) -> Iterator[list]:
    """The rows of one set, a class each."""
    digest = of_own_images(folder.root).digest
    more = teacher.arch, str(folder.root), digest or "", teacher.sha256
    for label, features in reader.by_class(folder, method):
        yield [method, folder.classes[label], len(features), similarity(features), *more]


if __name__ == "__main__":
    entry.run(main)
