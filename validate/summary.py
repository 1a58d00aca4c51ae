"""python -m validate.summary RUN_DIR: what a run measured, as a small table."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from utils import checkpoints, cli
from utils.files import MANIFEST, UserError, read_json
from validate.results import COLUMNS, read_rows


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("usage: python -m validate.summary RUN_DIR")
    folder = Path(sys.argv[1])
    rows = pd.DataFrame(read_rows(folder / "results.csv"), columns=COLUMNS).astype({"top1": float, "seconds": float})
    print()
    for line in stages(folder, rows):
        print(line)
    print(f"\ntop-1 of the last epoch in percent, mean and standard deviation over seeds, by protocol:\n{table(rows)}")
    print("\nfiles:")
    for name, what in (("syn", "distilled images"), ("contact_sheet.png", "starting images above the recovered ones"),
                       ("report/report.html", "all of it as a page: table, curves, diversity, times, images"),
                       ("results.csv", "one row a seed"), ("results", "settings and learning curve of each run")):
        if (folder / name).exists():
            print(f"  {folder / name}   {what}")


def table(rows: pd.DataFrame) -> str:
    """One line for each set and student, one column for each protocol."""
    groups = rows.groupby(["student", "method", "ipc", "protocol"], sort=False)["top1"]
    cells = groups.agg(lambda top1: f"{top1.mean():.2f}" + (f" ± {top1.std():.2f}" if len(top1) > 1 else ""))
    return cells.unstack("protocol").fillna("-").reset_index().to_string(index=False)


def stages(folder: Path, rows: pd.DataFrame) -> list[str]:
    """What the stages wrote of themselves, for those that ran in this folder."""
    lines = []
    if (folder / "teacher.pth").exists():
        teacher = checkpoints.read(folder / "teacher.pth")
        lines.append(f"squeeze   {teacher['seconds']:7.1f} s   teacher {teacher['arch']}: top-1 {teacher['top1']:.2f} %")
    for name, stage in (("init", "ranking"), ("syn", "recover")):
        if (folder / name / MANIFEST).exists():
            record = read_json(folder / name / MANIFEST)
            lines.append(f"{stage:9} {record.get('seconds', 0):7.1f} s   {len(images(record)):,} images")
    lines.append(f"validate  {rows['seconds'].sum():7.1f} s   {len(rows)} students")
    return lines


def images(record: dict) -> list[str]:
    """The paths in a recover manifest, or in a selection's."""
    return list(record.get("images") or [path for paths in record["settings"]["images"].values() for path in paths])


if __name__ == "__main__":
    cli.run(main)
