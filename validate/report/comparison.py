"""python -m validate.report.comparison RUN...: every set beside random real images, and what it cost to make.

One row a set, below one another those of the same data set, images per class, teacher and student. Writes
comparison.md, the table for people, and comparison.csv, a row for each set and protocol.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import pandas as pd

from utils import cli
from utils.data.image_folder import ImageFolder
from utils.run import entry
from utils.run.errors import UserError
from utils.run.files import write_text
from utils.run.markdown import escaped
from utils.run.markdown import table as markdown_table
from utils.run.outputs import check_output
from utils.run.progress import say_once
from validate.labels import StoredLabels
from validate.report import collect, diversity, origins
from validate.report.collect import Measured

BASELINE = "random"
LABEL_BYTES = 2  # of a class in a stored label: fp16
STAGES = ("ranking", "statistics", "recover")
OVER = "over random"  # heads what stands before each top-1
COLUMNS = (
    *("dataset", "ipc", "teacher", "student", "method", "protocol", "iterations"),
    *("seconds", *(f"{stage}_seconds" for stage in STAGES), "image_bytes", "label_bytes", "labels"),
    *("seeds", "top1", "top1_std", "margin", "margin_std", "similarity"),
    *("syn_dir", "subject", "name", "group", "earlier"),
)
WORDS = 5  # of COLUMNS, the last ones
SUBJECT_DIGITS = 16
NOTE = (
    "Top-1 in percent by protocol: the last epoch's, mean and sample standard deviation over seeds. Over random: the "
    "mean minus that of random real images under the same protocol, teacher and student, with the root of the sum of "
    "both variances over their seeds. Seconds to make the set, on the machine that did, without the teachers; what "
    "several sets share counts for each. Bytes of the images, and of the labels for one student: {labels}. Similarity: "
    "of the images of a class, lower is more diverse. Iterations: of the images that start first."
)
COMPUTED = "epochs x images x classes x 2, as if they were stored"
STORED = "as they are stored"


def table(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row for each set under each protocol, with COLUMNS; what is not known is missing.

    What is known of a set's folder is that of the images in it: where these were made anew since, of none. Accuracies
    in percent, bytes of one student's labels, `labels` how these are known: stored, computed, or none.
    Rows of one `subject` are of one set, with the same teachers, test images, geometry and precision; `name` is what
    tables call it, `group` what the table is headed by that it stands in. `earlier`: its images were replaced since.
    """
    titles = _group_titles(measured)
    similarities = _similarities(measured, titles)
    # Once a set, and not for each of its results: it takes digests of the images that the set started from.
    making, is_traced = functools.cache(origins.making), functools.cache(origins.is_traced)
    random = [one for one in measured if one.method == BASELINE]
    rows = []
    for one, similar, name, group in zip(measured, similarities, collect.names(measured), titles):
        there = one.is_there
        made, images = (making(one.set_dir), images_of(one)) if there else ({}, None)
        label_bytes, labels = bytes_of_labels(one, images)
        margin, margin_std = _margin(one, random)
        rows.append(
            {
                **{name: getattr(one, name) for name in ("dataset", "ipc", "teacher", "student", "method", "protocol")},
                "iterations": _iterations(one.set_dir) if there else None,
                "seconds": sum(made.values()) if made and is_traced(one.set_dir) else None,
                **{f"{stage}_seconds": made.get(stage) for stage in STAGES},
                "image_bytes": bytes_of_images(images),
                "label_bytes": label_bytes,
                "labels": labels,
                "seeds": len(one.seeds),
                "top1": statistics.fmean(one.top1),
                "top1_std": statistics.stdev(one.top1) if len(one.seeds) > 1 else None,
                "margin": margin,
                "margin_std": margin_std,
                "similarity": _similarity(similar, images),
                "syn_dir": one.syn_dir,
                "subject": one.subject[:SUBJECT_DIGITS],
                "name": name,
                "group": group,
                "earlier": one.is_replaced,
            }
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    whole = ["iterations", "image_bytes", "label_bytes"]
    frame[whole] = frame[whole].astype("Int64")
    numbers = [name for name in COLUMNS[7:-WORDS] if name not in (*whole, "labels", "seeds")]
    frame[numbers] = frame[numbers].astype(float)
    return frame


def difference(top1: Sequence[float], baseline: Sequence[float]) -> tuple[float, float | None]:
    """Mean minus mean, and its standard error: the root of both sample variances over their numbers of seeds.

    None for the latter where one of them has a single seed.
    """
    error = None
    if min(len(top1), len(baseline)) > 1:
        error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (top1, baseline)))
    return statistics.fmean(top1) - statistics.fmean(baseline), error


def images_of(one: Measured) -> ImageFolder | None:
    """Those that students were trained on; None where they are gone."""
    try:
        return origins.first_images(one.set_dir, one.arguments.get("ipc"))
    except UserError:
        return None


def bytes_of_images(images: ImageFolder | None) -> int | None:
    """Of the image files; None where they are gone."""
    return sum(os.stat(images.root / path).st_size for path in images.paths) if images else None


def bytes_of_labels(one: Measured, images: ImageFolder | None) -> tuple[int | None, str]:
    """What one student's labels take, and how that is known: stored, computed, or none for hard labels."""
    if one.settings.get("labels") == "hard":
        return 0, "none"
    root = one.arguments.get("save_labels") or one.arguments.get("load_labels")
    folders = [labels.folder for labels in _own_labels(root, one)] if isinstance(root, str) else []
    if stored := [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]:
        return round(statistics.fmean(stored)), "stored"
    if images is None:
        return None, "computed"
    return one.epochs * len(images) * len(images.classes) * LABEL_BYTES, "computed"


def _own_labels(root: str, one: Measured) -> Iterator[StoredLabels]:
    """Of those in the folder of --save-labels the ones that the students learnt from; others may be there by now."""
    for seed in one.seeds:
        with contextlib.suppress(UserError):  # none, or none that are whole
            if (labels := StoredLabels(root, seed)).are_of(one.settings):
                yield labels


def _iterations(folder: Path) -> int | None:
    """Of a recovered set, those of the images that start first."""
    found = origins.manifest_of(folder)
    value = found.settings.get("iterations") if found.is_recovered else None
    return value if isinstance(value, int) else None


def _similarities(measured: Sequence[Measured], titles: Sequence[str]) -> list[pd.DataFrame]:
    """For each result what was measured of its images; nothing for a group's whose similarities would not compare."""
    tables = {run: diversity.of_run(run) for run in {one.run for one in measured}}
    nothing = pd.DataFrame(columns=diversity.COLUMNS)
    found = [nothing] * len(measured)
    for k, one in enumerate(measured):
        if (rows := tables[one.run]) is not None and one.is_there:
            found[k] = diversity.of_images(rows[diversity.of_folder(rows, one.syn_dir)], one.set_digest)
    for title in dict.fromkeys(titles):
        own = [k for k in range(len(measured)) if titles[k] == title and len(found[k])]
        networks = diversity.extractors(pd.concat([nothing, *(found[k] for k in own)]))
        if len(networks) > 1:
            names = ", ".join(" ".join([arch, sha[:8]]).strip() for arch, sha in sorted(networks))
            say_once(
                f"left out: similarities of {title}: they are in the features of several networks "
                f"({names}), which do not compare; measure all sets by one"
            )
            for k in own:
                found[k] = nothing
    return found


def _similarity(found: pd.DataFrame, images: ImageFolder | None) -> float | None:
    """The mean over classes; None where it was not measured of these images."""
    measured = len(found) > 0 and (images is None or found["images"].sum() == len(images))
    return found["similarity"].mean() if measured else None


def _margin(one: Measured, random: Sequence[Measured]) -> tuple[float | None, float | None]:
    """Over the random images that were measured alike; of several sets of them over none."""
    if one.method == BASELINE or (baseline := collect.baseline_of(one, random)) is None:
        return None, None
    return difference(one.top1, baseline.top1)


# --- for people --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | str  # to sort by


@dataclass(frozen=True)
class Group:
    """The sets that are compared: of one data set, images per class, teacher and student."""

    title: str
    columns: list[str]
    main: int  # how many of them are accuracies, or name the set; what follows are details
    rows: list[list[Cell]]


def groups(frame: pd.DataFrame) -> Iterator[Group]:
    """The table by groups, a column for each protocol, the best set under the first soft one on top.

    Sets whose images were replaced since stand below.
    """
    for title, found in frame.groupby("group", sort=False):
        hard = found.groupby("protocol", sort=False)["labels"].agg(lambda labels: (labels == "none").all())
        protocols = [*hard[~hard].index, *hard[hard].index]
        seeds = sorted(found["seeds"])
        soft = [protocol for protocol in protocols if not hard[protocol]]
        columns = ["set", *(title for protocol in protocols for title in (f"{protocol} {OVER}", protocol))]
        main = len(columns)
        columns += ["seconds", *STAGES, "images", *(f"labels, {protocol}" for protocol in soft)]
        columns += ["similarity", "iterations"]
        # What was measured of one set several times under one name, by other settings, has a row each.
        found = found.assign(again=found.groupby(["subject", "protocol"]).cumcount())
        sets = [_by_protocol(one) for _, one in found.groupby(["subject", "again"], sort=False)]
        sets.sort(key=lambda one: (next(iter(one.values()))["earlier"], -_top1(one, protocols[0])))
        most = statistics.mode(seeds)
        rows = [_row(one, protocols, soft, most) for one in sets]
        count = f"{most} seed{'s' * (most > 1)}{', other numbers in brackets' * (seeds[0] < seeds[-1])}"
        yield Group(f"{title}, {count}", columns, main, rows)


def _group_titles(measured: Sequence[Measured]) -> list[str]:
    return [
        f"{one.dataset}, IPC {one.ipc}, teacher {one.teacher}, student {one.student}{more}"
        for one, more in zip(measured, collect.circumstances(measured))
    ]


def _by_protocol(rows: pd.DataFrame) -> dict[str, pd.Series]:
    return {row["protocol"]: row for _, row in rows.iterrows()}


def _top1(one: dict[str, pd.Series], protocol: str) -> float:
    return one[protocol]["top1"] if protocol in one else -1.0


def _row(one: dict[str, pd.Series], protocols: Sequence[str], soft: Sequence[str], most: int) -> list[Cell]:
    """`most`: the number of seeds that is not said."""
    first = next(iter(one.values()))
    name = max((row["name"] for row in one.values()), key=len)  # with all that tells one of its results apart
    cells = [Cell(name, name)]
    for protocol in protocols:
        row = one.get(protocol, {})
        cells += [_cell(row.get("margin"), "{:+.2f}", row.get("margin_std"))]
        top1 = _cell(row.get("top1"), "{:.2f}", row.get("top1_std"))
        others = f" ({row['seeds']})" if row.get("seeds", most) != most else ""
        cells += [Cell(f"{top1.text}{others}", top1.value)]
    cells += [_cell(first[name], "{:,.0f}") for name in ("seconds", *(f"{stage}_seconds" for stage in STAGES))]
    cells += [_bytes(first["image_bytes"]), *(_bytes(one.get(protocol, {}).get("label_bytes")) for protocol in soft)]
    return [*cells, _cell(first["similarity"], "{:.3f}"), _cell(first["iterations"], "{:,}")]


def _cell(value: Any, form: str, deviation: Any = None) -> Cell:
    if value is None or pd.isna(value):
        return Cell("", "")
    text = form.format(value)
    return Cell(text if deviation is None or pd.isna(deviation) else f"{text} ± {deviation:.2f}", float(value))


def _bytes(value: Any) -> Cell:
    if value is None or pd.isna(value):
        return Cell("", "")
    number, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return Cell(f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}", float(value))


def note(frame: pd.DataFrame) -> str:
    """What the columns say."""
    kinds = [text for kind, text in (("stored", STORED), ("computed", COMPUTED)) if (frame["labels"] == kind).any()]
    return NOTE.format(labels=" or ".join(kinds) or "none for hard ones")


def markdown(frame: pd.DataFrame) -> str:
    parts = []
    for group in groups(frame):
        rows = [[cell.text for cell in row] for row in group.rows]
        parts.append(f"**{escaped(group.title)}**\n\n{markdown_table(group.columns, rows)}")
    return "\n".join([*parts, f"{note(frame)}\n"])


def write(frame: pd.DataFrame, folder: Path) -> None:
    write_text(folder / "comparison.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(folder / "comparison.md", markdown(frame))


@dataclass(frozen=True)
class Flags:
    runs: tuple[str, ...]
    output_dir: str | None


def parse() -> Flags:
    parser = cli.Parser(
        "validate.report.comparison",
        "One table: each set's seconds and bytes, its top-1 under each protocol, and its margin over random images.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--output-dir of python -m validate, or a script's run")
    parser.add_argument(
        "--output-dir", metavar="DIR", help="gets comparison.md and comparison.csv; RUN/report if left out"
    )
    return cli.group(parser.parse_args(), Flags)


def main() -> None:
    flags = parse()
    folder = Path(flags.output_dir or Path(flags.runs[0]) / "report")
    check_output(folder / "comparison.md")
    frame = table(collect.read(flags.runs))
    write(frame, folder)
    print()
    for group in groups(frame):
        print(f"{group.title}:")
        most = group.columns.index("seconds") + 1  # what a terminal is wide enough for
        texts = [[cell.text or "-" for cell in row[:most]] for row in group.rows]
        print(pd.DataFrame(texts, columns=group.columns[:most]).to_string(index=False), end="\n\n")
    print(f"{note(frame)}\n{folder / 'comparison.md'}, {folder / 'comparison.csv'}")


if __name__ == "__main__":
    entry.run(main)
