"""python -m validate.report RUN...: one static page of what runs measured, to look at before reading.

Beside the page are its figures as PNG, and its tables as Markdown and CSV.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from utils import cli
from utils.data import gallery
from utils.run import entry
from utils.run.files import write_text
from utils.run.outputs import check_output
from validate.report import charts, collect, comparison, figures, origins, page, scores, tables


@dataclass(frozen=True)
class Flags:
    runs: tuple[str, ...]
    output_dir: str | None
    title: str
    classes: int
    images: int
    full_hard: tuple[scores.FullHard, ...] | None


def parse() -> Flags:
    parser = cli.Parser(
        "validate.report",
        "One static HTML page of what runs measured: tables, curves, diversity, times and pictures; its figures as "
        "PNG, its tables as Markdown and CSV.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="--output-dir of python -m validate, or a script's run folder"
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="gets report.html, figures/, scores.csv, results and comparison as .md and .csv; RUN/report if left out",
    )
    parser.add_argument("--title", default="DELT: what was measured", help="of the page")
    parser.add_argument("--classes", type=cli.positive, default=10, help="most classes in the gallery, evenly spaced")
    parser.add_argument("--images", type=cli.positive, default=10, help="most images of a class and set, early to late")
    parser.add_argument(
        "--full-hard",
        type=full_hard,
        action="append",
        metavar="[ARCH=]PERCENT",
        help="top-1 of a student on the whole data set with hard labels, for LRS, where no teacher is of its "
        "architecture, whose own is taken; once for each such student",
    )
    return cli.group(parser.parse_args(), Flags)


# Less is a fraction, most likely.
percent = cli.Number(float, "from 1 to 100 percent", lambda value: 1 <= value <= 100)


def full_hard(text: str) -> scores.FullHard:
    arch, _, number = text.rpartition("=")
    return arch or None, percent(number)


def main() -> None:
    flags = parse()
    folder = Path(flags.output_dir or Path(flags.runs[0]) / "report")
    measured = collect.read(flags.runs)
    check_output(folder / "report.html")
    results = tables.results(measured)
    compared = comparison.table(measured)
    sets = origins.image_sets(measured)
    contents = page.Contents(
        title=flags.title,
        command=shlex.join(["python", "-m", "validate.report", *flags.runs]),
        measured=measured,
        compared=compared,
        results=results,
        scores=scores.table(measured, flags.full_hard or ()),
        charts=charts.of_runs(flags.runs, measured),
        blocks=gallery.blocks(class_names(sets), sets, flags.classes, flags.images, collect.left_out),
    )
    for chart in contents.charts:
        if chart.numbers is not None:
            figures.save(folder / "figures" / f"{chart.anchor}.png", chart.draw)
            text = chart.numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            write_text(folder / "figures" / f"{chart.anchor}.csv", text)
    remove_others(folder / "figures", contents.charts)
    comparison.write(compared, folder)
    write_text(folder / "results.csv", results.to_csv(index=False, lineterminator="\n"))
    if contents.scores.empty:
        (folder / "scores.csv").unlink(missing_ok=True)  # an earlier report's
    else:
        write_text(folder / "scores.csv", contents.scores.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "results.md", tables.markdown(results))
    write_text(folder / "report.html", page.render(contents))
    students = sum(len(one.seeds) for one in measured)
    print(
        f"report: {len(measured)} results of {students} students: {folder / 'report.html'}; its tables "
        "and figures beside it"
    )


def remove_others(folder: Path, found: Sequence[charts.Chart]) -> None:
    """Remove an earlier report's figures that this one does not have: they would pass for its own."""
    drawn = {chart.anchor for chart in found if chart.numbers is not None}
    # Of curves there is one for all, or one a protocol; of diversity, one for the sets of each data set.
    earlier = [path for pattern in charts.EARLIER for path in folder.glob(pattern)]
    earlier += [folder / f"{chart.anchor}.{ending}" for chart in found for ending in ("png", "csv")]
    for path in earlier:
        if path.stem not in drawn:
            path.unlink(missing_ok=True)


def class_names(sets: list[gallery.ImageSet]) -> list[str]:
    return sorted({name for images in sets for name in images.paths})


if __name__ == "__main__":
    entry.run(main)
