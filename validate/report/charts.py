"""The report's charts: which figures it has, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from utils.run.files import digest
from utils.run.progress import say_once
from validate.report import diversity, figures, origins
from validate.report.collect import Measured, told_apart
from validate.results import file_name

MOST_CURVES = 12  # in one figure
# Anchor -> title, entry of the curves, label, text.
CURVES = {
    "curves": (
        "Learning curves",
        "top1",
        "top-1, percent",
        "Top-1 on the test images where it was measured, mean and standard deviation over seeds.",
    ),
    "loss": (
        "Training loss",
        "loss",
        "loss",
        "Mean over seeds; the losses of soft and of hard labels are different quantities.",
    ),
}


DIVERSITY = "diversity"
# Files of an earlier report's charts of which there may be several.
EARLIER = (*(f"{anchor}*.*" for anchor in CURVES), f"{DIVERSITY}-[0-9]*.*")


@dataclass(frozen=True)
class Chart:
    anchor: str  # on the page, and the name of its file
    title: str
    text: str
    numbers: pd.DataFrame | None = None  # None where there is nothing to draw
    drawn: Callable[[pd.DataFrame], Figure] | None = None  # how

    def draw(self) -> Figure:
        return self.drawn(self.numbers)


def of_runs(runs: Sequence[str], measured: Sequence[Measured]) -> list[Chart]:
    return [*_curves(measured), *_diversity(runs, measured), _time(measured)]


def _curves(measured: Sequence[Measured]) -> list[Chart]:
    """Accuracies and losses; of each protocol by itself where there are more than can be told apart in one figure."""
    titles = told_apart(
        [(one.title, one.dataset, one.teacher, *one.words, digest(one.settings)[:8]) for one in measured]
    )
    titled = list(zip(titles, measured))
    parts = {"": titled}
    if len(measured) > MOST_CURVES:
        names = dict.fromkeys(one.protocol for one in measured)
        parts = {name: [(title, one) for title, one in titled if one.protocol == name] for name in names}
    charts = []
    for anchor, (title, entry, label, text) in CURVES.items():
        for protocol, entries in parts.items():
            found = [(title, [student.curve for student in one.seeds.values()]) for title, one in entries]
            name = file_name(anchor, protocol) if protocol else anchor
            heading = f"{title}, {protocol}" if protocol else title
            points = figures.points(found, entry)
            if points.empty:
                charts.append(Chart(name, heading, "No result has such a curve."))
                continue
            draw = partial(figures.curves, label=label, log=entry == "loss")
            charts.append(Chart(name, heading, text, points, draw))
    return charts


def _diversity(runs: Sequence[str], measured: Sequence[Measured]) -> list[Chart]:
    """Of the sets that have the same classes one chart."""
    found = {Path(run): table for run in runs if (table := diversity.of_run(run)) is not None}
    tables = [_still_true(table, [one for one in measured if one.run == run]) for run, table in found.items()]
    tables = [table.assign(run=str(run)) for run, table in zip(found, tables) if len(table)]
    title = "Diversity"
    if not tables:
        text = (
            f"Not measured yet: run python -m validate.report.diversity SET... --output-dir {runs[0]}, then make this "
            "page again."
        )
        return [Chart(DIVERSITY, title, text)]
    table = pd.concat(tables, ignore_index=True)
    # Folders of one relative path lie in different places for different runs, unless their images are the same.
    table = table[~((table["set"] != "") & table.duplicated(diversity.UNIQUE))]
    words = [table["method"], table["syn_dir"], table["extractor"], table["extractor_sha256"].str[:8]]
    table = table.assign(method=told_apart(list(zip(*words, table["run"], table["set"].str[:8]))))
    text = (
        "Mean cosine similarity of the pairs of images within a class, in a network's penultimate features: lower is "
        "more diverse."
    )
    parts: dict[frozenset[str], list[pd.DataFrame]] = {}
    for _, found in table.groupby("method", sort=False):
        parts.setdefault(frozenset(found["class"]), []).append(found)
    if len(parts) == 1:
        return [Chart(DIVERSITY, title, text, table, figures.diversity)]
    charts = []
    for number, (classes, tables) in enumerate(parts.items(), start=1):
        found = pd.concat(tables, ignore_index=True)
        of = {one.dataset for one in measured if str(one.run) in set(found["run"])}
        name = of.pop() if len(of) == 1 else f"{min(classes)} and others"
        anchor = f"{DIVERSITY}-{number}" if number > 1 else DIVERSITY
        charts.append(Chart(anchor, f"{title}, {name}", text, found, figures.diversity))
    return charts


def _still_true(table: pd.DataFrame, measured: Sequence[Measured]) -> pd.DataFrame:
    """A run's table without images that were made anew since, which a line names."""
    stale = diversity.stale(table, measured)
    for folder in dict.fromkeys(table[stale]["syn_dir"]):
        say_once(f"left out: the diversity of {folder} (its images were made anew since; measure it again)")
    return table[~stale]


def _time(measured: Sequence[Measured]) -> Chart:
    title, columns = "Time per stage", list(figures.STAGES)
    seconds = pd.DataFrame.from_dict(origins.stage_seconds(measured), orient="index", columns=columns)
    if seconds.isna().all(axis=None):
        return Chart("time", title, "No seconds are known.")
    text = (
        "Wall time on the machine that ran it, of validate for one student under the protocol that is named, the "
        "first one under which all sets were measured; what was trained or made elsewhere has no bar."
    )
    return Chart("time", title, text, seconds.rename_axis("set").reset_index(), figures.stages)
