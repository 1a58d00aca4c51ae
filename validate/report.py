"""python -m validate.report RUN...: one static page of what the runs measured, to look at before reading.

It opens from disk and needs no network: pictures lie in the page. Beside it are its figures as PNG, and its table as
Markdown and CSV.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, Callable

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from utils import cli
from utils.files import check_output, replacing
from validate import collect, diversity, figures, gallery
from validate.collect import Measured
from validate.gallery import png_uri

TITLES = {"dataset": "data set", "ipc": "IPC", "method": "set", "teacher": "teacher", "student": "student",
          "protocol": "protocol", "top1": "top-1", "seeds": "seeds", "best_top1": "best epoch", "top5": "top-5",
          "epochs": "epochs", "seconds": "seconds", "source": "source"}
NUMBERS = ("ipc", "top1", "seeds", "best_top1", "top5", "epochs", "seconds")


def parse() -> argparse.Namespace:
    parser = cli.Parser("validate.report", "One static HTML page of what runs measured: table, curves, diversity, times and "
                        "pictures; its figures as PNG, its table as Markdown and CSV.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="--output-dir of python -m validate, or a script's run folder")
    parser.add_argument("--output-dir", metavar="DIR", help="gets report.html, results.md, results.csv and figures/; "
                        "RUN/report if left out")
    parser.add_argument("--title", default="DELT: what was measured", help="of the page")
    parser.add_argument("--classes", type=cli.positive, default=10, help="most classes in the gallery, evenly spread")
    parser.add_argument("--images", type=cli.positive, default=10, help="most images of a class and set, early to late")
    parser.add_argument("--full-hard", type=cli.amount, metavar="PERCENT", help="top-1 of the student on the whole data set "
                        "with hard labels, for LRS; the teacher's own where it is of the same architecture")
    args = parser.parse_args()
    args.output_dir = Path(args.output_dir or Path(args.runs[0]) / "report")
    return args


def main() -> None:
    args = parse()
    measured = collect.read(args.runs)
    check_output(args.output_dir / "report.html")
    table = collect.table(measured)
    drawn = drawings(args, measured)
    for figure in drawn:
        if figure["draw"]:
            figures.save(args.output_dir / "figures" / f"{figure['anchor']}.png", figure["draw"])
    write(args.output_dir / "results.csv", table.to_csv(index=False, lineterminator="\n"))
    write(args.output_dir / "results.md", markdown(table))
    write(args.output_dir / "report.html", page(args, measured, table, drawn))
    print(f"report: {len(measured)} results of {sum(len(entry.seeds) for entry in measured)} students: "
          f"{args.output_dir / 'report.html'}; results.md, results.csv and figures/ beside it")


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def drawings(args: argparse.Namespace, measured: list[Measured]) -> list[dict[str, Any]]:
    """The page's figures: anchor, title, text and how to draw it (None where there is nothing to draw)."""
    similar = [diversity.read(path) for run in args.runs if (path := Path(run) / "diversity.csv").is_file()]
    table = pd.concat(similar).drop_duplicates(["method", "class"]) if similar else None
    seconds = collect.seconds(measured)
    curves = [(one.title, [seed["curve"] for seed in one.seeds.values()]) for one in measured]

    def entry(anchor: str, title: str, text: str, draw: Callable[[], Figure] | None) -> dict[str, Any]:
        return {"anchor": anchor, "title": title, "text": text, "draw": draw}

    return [
        entry("curves", "Learning curves",
              "Top-1 on the test images where it was measured, mean and standard deviation over seeds.",
              lambda: figures.curves(curves, "top1", "top-1, percent")),
        entry("loss", "Training loss", "Mean over seeds; the losses of soft and of hard labels are different quantities.",
              lambda: figures.curves(curves, "loss", "loss", log=True)),
        entry("diversity", "Diversity",
              "Mean cosine similarity of the pairs of images within a class, in a network's penultimate features: lower is "
              "more diverse." if similar else f"Not measured: python -m validate.diversity SET... --output-dir {args.runs[0]} "
              "does, then make this page again.", (lambda: figures.diversity(table)) if similar else None),
        entry("time", "Time per stage", "Wall time on the machine that ran it; what was trained or made elsewhere has no bar.",
              lambda: figures.stages(seconds)),
    ]


def text(name: str, row: Any) -> str:
    """A cell as people read it."""
    value = row[name]
    if pd.isna(value):
        return ""
    if name == "top1":
        return f"{value:.2f} ± {row['std']:.2f}" if not pd.isna(row["std"]) else f"{value:.2f}"
    return f"{value:.2f}" if name in ("best_top1", "top5") else f"{value:.0f}" if name == "seconds" else str(value)


def markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(TITLES.values()) + " |", "|" + "---|" * len(TITLES)]
    lines += ["| " + " | ".join(text(name, row).replace("|", "\\|") for name in TITLES) + " |" for _, row in table.iterrows()]
    return "\n".join(lines) + "\n"


def page(args: argparse.Namespace, measured: list[Measured], table: pd.DataFrame, drawn: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True)
    columns = [{"title": title, "number": name in NUMBERS} for name, title in TITLES.items()]
    rows = [{"published": row["source"] == "published",
             "cells": [{"text": text(name, row), "value": "" if pd.isna(row[name]) else row[name], "number": name in NUMBERS}
                       for name in TITLES]} for _, row in table.iterrows()]
    pictures = [{**figure, **({theme: png_uri(figures.png(figure["draw"], theme)) for theme in ("light", "dark")}
                              if figure["draw"] else {"light": None})} for figure in drawn]
    blocks = gallery.blocks(measured, args.classes, args.images)
    gallery_text = "Each set's images in rank order: of a recovered set from the longest optimised to the shortest. Point " \
        "at an image for its rank and updates; click to enlarge it." if blocks else \
        "The sets are no longer where the runs found them; nothing to show."
    counts = [len(entry.seeds) for entry in measured]
    return environment.get_template("report.html.j2").render(
        title=args.title, students=sum(counts), sets=len({entry.facts["syn_dir"] for entry in measured}),
        seeds=f"{min(counts)} to {max(counts)} seeds each" if min(counts) < max(counts) else f"seeds each: {counts[0]}",
        command=shlex.join(["python", "-m", "validate.report", *args.runs]), columns=columns, rows=rows,
        scores=scores(collect.ranking(measured, args.full_hard)), figures=pictures, blocks=blocks, gallery_text=gallery_text,
        sections=[("results", "Results"), *((figure["anchor"], figure["title"]) for figure in drawn), ("gallery", "Gallery")])


def scores(ranking: pd.DataFrame) -> dict[str, Any] | None:
    if ranking.empty:
        return None
    shown = ranking.drop(columns="full_hard").map(
        lambda value: "" if pd.isna(value) else f"{value:.3f}" if isinstance(value, float) else str(value))
    return {"columns": [TITLES.get(name, name) for name in shown.columns], "rows": shown.to_numpy().tolist()}


if __name__ == "__main__":
    cli.run(main)
