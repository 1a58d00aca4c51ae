"""python -m validate.report.summary RUN_DIR: what a run measured, as a small table."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from utils.data.manifest import Manifest, seconds
from utils.nets import checkpoints
from utils.run import entry
from utils.run.errors import UserError
from validate.report import tables
from validate.results import COLUMNS, read_rows

FILES = {
    "syn": "distilled images",
    "contact_sheet.png": "starting images above the recovered ones",
    "report/report.html": "all of it as a page: table, curves, diversity, times, images",
    "results.csv": "one row a seed",
    "results": "settings and learning curve of each run",
}


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python -m validate.report.summary RUN_DIR")
    folder = Path(sys.argv[1])
    rows = read(folder / "results.csv")
    print("", *stages(folder, rows), sep="\n")
    print("\ntop-1 of the last epoch in percent, mean and standard deviation over seeds, by protocol:")
    print(tables.summary(rows))
    print("\nfiles:")
    for name, what in FILES.items():
        if (folder / name).exists():
            print(f"  {folder / name}   {what}")


def read(path: Path) -> pd.DataFrame:
    """The rows of a results.csv. Raises UserError where it is none, has no rows, or a number is none."""
    try:
        rows = pd.DataFrame(read_rows(path), columns=COLUMNS).astype({"top1": float, "seconds": float})
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read as results ({error}); remove it and run `python -m validate`"
        ) from None
    if rows.empty:
        raise UserError(f"{path}: holds no results; run `python -m validate` first")
    return rows


def stages(folder: Path, rows: pd.DataFrame) -> list[str]:
    """A line for each stage that ran in this folder."""
    lines = []
    if (folder / "teacher.pth").exists():
        teacher = checkpoints.read(folder / "teacher.pth")
        top1 = f": top-1 {teacher['top1']:.2f} %" if teacher.get("top1") is not None else ""
        lines.append(f"squeeze   {seconds(teacher):7.1f} s   teacher {teacher.get('arch', '')}{top1}")
    for name, stage in (("init", "ranking"), ("syn", "recover")):
        found = Manifest.of(folder / name)
        if found.content:
            lines.append(f"{stage:9} {found.seconds:7.1f} s   {found.image_count:,} images")
    lines.append(f"validate  {rows['seconds'].sum():7.1f} s   {len(rows)} students")
    return lines


if __name__ == "__main__":
    entry.run(main)
