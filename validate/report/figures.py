"""The figures, on paper and on a dark page: one set has one colour in all of them."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from utils.run.files import write_bytes

matplotlib.use("Agg")

THEMES = ("light", "dark")
# Distinct for colour-blind readers too (Wong, Nature Methods 2011), in an order that keeps neighbours apart.
COLOURS = {
    "light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"),
    "dark": ("#56b4e9", "#ff8f4d", "#3ecf9b", "#e8a2cb", "#f2c14e", "#a9d6ff", "#b79ce0", "#a8a8a8"),
}
MARKERS = "osD^vPX*"
LINES = ("solid", "dashed", "dotted", "dashdot")  # where there are more than colours and markers
STAGES = ("squeeze", "ranking", "statistics", "recover", "validate")
WIDTH = 6.2  # inches
INK = {"light": "#22262b", "dark": "#e4e6e9"}
GRID = {"light": "#d9dce0", "dark": "#3a3f46"}
MOST_POINTS = 40  # that are marked, or named


@contextlib.contextmanager
def _themed(theme: str) -> Iterator[None]:
    ink = INK[theme]
    settings = {
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": GRID[theme],
        "grid.color": GRID[theme],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=COLOURS[theme]),
        "font.size": 10,
        "legend.frameon": False,
        "savefig.transparent": theme == "dark",
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(settings):
        yield


def png(draw: Callable[[], Figure], theme: str = "light") -> bytes:
    """The figure that `draw` makes, as PNG; dark ones have a transparent ground."""
    with _themed(theme):
        figure = draw()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144)
        plt.close(figure)
    return buffer.getvalue()


def save(path: str | Path, draw: Callable[[], Figure]) -> None:
    write_bytes(path, png(draw))


def diversity(table: pd.DataFrame) -> Figure:
    """Mean cosine similarity within each class, one line a set; the columns of validate.report.diversity."""
    methods = list(dict.fromkeys(table["method"]))
    first = table[table["method"] == methods[0]].sort_values("similarity", kind="stable")
    classes = first["class"].tolist()
    few = len(classes) <= MOST_POINTS
    figure, axes = plt.subplots(figsize=(WIDTH, 3.7))
    for number, method in enumerate(methods):
        found = table[table["method"] == method].set_index("class")["similarity"]
        axes.plot(
            range(len(classes)),
            found.reindex(classes),
            color=_colour(number),
            marker=_marker(number) if few else None,
            markersize=5,
            linewidth=1.4,
            linestyle=_line(number),
            label=f"{method}, mean {found.mean():.3f}",
        )
    if few:
        axes.set_xticks(range(len(classes)), classes, rotation=35, ha="right", parse_math=False)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(classes)} classes")
    axes.set_ylabel("cosine similarity of pairs\n(lower is more diverse)")
    axes.grid(axis="x", visible=False)
    _legend(figure)
    return figure


def points(runs: Sequence[tuple[str, Sequence[Sequence[Mapping[str, float]]]]], name: str) -> pd.DataFrame:
    """The entry `name` of learning curves where it was measured: set, epoch, mean, std and seeds of each point.

    A run is a title and one curve a seed.
    """
    measured = [
        (title, entry["epoch"], entry[name])
        for title, seeds in runs
        for curve in seeds
        for entry in curve
        if name in entry
    ]
    frame = pd.DataFrame(measured, columns=["set", "epoch", "value"])
    return frame.groupby(["set", "epoch"], sort=False)["value"].agg(["mean", "std", "count"]).reset_index()


def curves(points: pd.DataFrame, label: str, log: bool = False) -> Figure:
    """One line a set, of `points`."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.7))
    for number, (title, found) in enumerate(points.groupby("set", sort=False)):
        few = len(found) <= MOST_POINTS
        axes.errorbar(
            found["epoch"],
            found["mean"],
            found["std"].fillna(0) if few else None,
            color=_colour(number),
            marker=_marker(number) if few else None,
            markersize=5,
            linewidth=1.3,
            capsize=2,
            label=title,
            linestyle=_line(number),
        )
    axes.set(xlabel="epoch", ylabel=label, yscale="log" if log else "linear")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure)
    return figure


def stages(seconds: pd.DataFrame) -> Figure:
    """Minutes of each stage, one bar a set, of the columns set and STAGES, in seconds; NaN where there was no stage."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.38 * len(seconds)))
    left = pd.Series(0.0, seconds.index)
    for number, stage in enumerate(name for name in STAGES if seconds[name].notna().any()):
        widths = seconds[stage].fillna(0.0) / 60
        axes.barh(range(len(seconds)), widths, left=left, color=_colour(number), label=stage, height=0.65)
        left = left + widths
    axes.set_yticks(range(len(seconds)), seconds["set"], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("minutes (validate: one student)")
    axes.grid(axis="y", visible=False)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """Above the axes, in as many columns as fit. The figure grows with it, the axes keep their height."""
    labels = figure.axes[0].get_legend_handles_labels()[1]
    columns = max(1, min(4, 88 // (max(map(len, labels)) + 9)))
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(rows - 2, 0))
    legend = figure.legend(loc="outside upper center", ncols=columns, fontsize=8.5)
    for text in legend.get_texts():
        text.set_parse_math(False)  # methods and classes may have dollars in their names


def _colour(number: int) -> str:
    return f"C{number}"  # of the theme


def _line(number: int) -> str:
    return LINES[number // len(MARKERS) % len(LINES)]


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
