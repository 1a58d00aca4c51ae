"""python -m validate.diversity DIR...: how alike the images of a class are; lower is more diverse.

For each class the mean cosine similarity between all pairs of its images in a network's penultimate features (DELT,
section 4.4), of images as they stand.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import normalize

from utils import cli, features, memory
from utils.files import UserError, check_output, replacing
from utils.images import ImageFolder, resize_whole
from validate import figures

COLUMNS = ["method", "class", "images", "similarity", "extractor", "syn_dir"]


def similarity(rows: torch.Tensor) -> float:
    """The mean cosine similarity of all pairs among `rows` (n, D), n of 2 or more."""
    count = len(rows)
    total = normalize(rows.double(), dim=1).sum(0)
    # The squared length of the sum holds every pair twice, and each row with itself, which is 1.
    return float((total @ total - count) / (count * (count - 1)))


def read(path: str | Path) -> pd.DataFrame:
    """What this module wrote. Raises UserError for a file of other make."""
    try:
        table = pd.read_csv(path, dtype={"method": str, "class": str}, keep_default_na=False)
        table["similarity"] = table["similarity"].astype(float)
        return table[COLUMNS]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is no table of diversity ({str(error).splitlines()[0]}); run `python -m validate.diversity` "
                        "again") from None


def parse() -> argparse.Namespace:
    parser = cli.Parser("validate.diversity", "Mean cosine similarity of the pairs of images of each class; lower is more "
                        "diverse. The extractor is the teacher or any other checkpoint, of these classes or not.")
    parser.add_argument("syn_dir", nargs="+", metavar="DIR", help="ImageFolders with the same classes")
    parser.add_argument("--method", nargs="+", metavar="NAME", help="one name for each DIR; the folders' if left out")
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets diversity.csv and diversity.png")
    cli.add_teacher(parser)
    cli.add_data(parser, "images per batch; 256 if left out")
    args = parser.parse_args()
    args.method = args.method or [Path(path).resolve().name for path in args.syn_dir]
    if len(args.method) != len(args.syn_dir):
        parser.error(f"{len(args.syn_dir)} folders need {len(args.syn_dir)} --method names, not {len(args.method)}")
    if len(set(args.method)) < len(args.method):
        parser.error(f"the --method names must differ ({', '.join(args.method)})")
    return args


def main() -> None:
    args = parse()
    runtime = cli.runtime(args)
    classes = ImageFolder(args.syn_dir[0], "DIR").classes
    folders = [ImageFolder(path, "DIR", classes, args.syn_dir[0]) for path in args.syn_dir]
    for folder in folders:
        if folder.fewest() < 2:
            raise UserError(f"{folder.root}: has a class of a single image; a pair is needed to speak of diversity")
    check_output(Path(args.output_dir) / "diversity.csv")
    for folder in folders:
        folder.load(args.workers)
    network = cli.teacher(args, args.syn_dir[0], "DIR")
    model = runtime.frozen(features.extractor(network.model))
    batch_size = memory.fitting(args.batch_size, 256, 1, Path(args.output_dir) / "diversity.csv",
                                lambda images: memory.evaluation(model, images, network.input_size, runtime))
    rows = []
    with memory.guarded(batch_size):
        for method, folder in zip(args.method, folders):
            for label, found in features.by_class(model, network, folder, runtime, method, batch_size, args.workers,
                                                  resize_whole, apply=memory.way(args.batch_size)):
                rows.append([method, classes[label], len(found), similarity(found), network.arch, str(folder.root)])
    table = pd.DataFrame(rows, columns=COLUMNS)
    with replacing(Path(args.output_dir) / "diversity.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n")
    figures.save(Path(args.output_dir) / "diversity.png", lambda: figures.diversity(table))
    for method, group in table.groupby("method", sort=False):
        print(f"diversity: {method}: {group['similarity'].mean():.4f} over {len(group)} classes "
              f"({group['similarity'].min():.4f} to {group['similarity'].max():.4f})")
    print(f"diversity: {Path(args.output_dir) / 'diversity.csv'}, {Path(args.output_dir) / 'diversity.png'}")


if __name__ == "__main__":
    cli.run(main)
