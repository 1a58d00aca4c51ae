"""The figures of diversity and report: one set, one colour, in all of them; on paper and on a dark page."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from typing import Callable, Iterator

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from utils.files import replacing

matplotlib.use("Agg")

# Distinct for colour-blind readers too (Wong, Nature Methods 2011), in an order that keeps neighbours apart.
COLOURS = {"light": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"),
           "dark": ("#56b4e9", "#ff8f4d", "#3ecf9b", "#e8a2cb", "#f2c14e", "#a9d6ff", "#b79ce0", "#a8a8a8")}
MARKERS = "osD^vPX*"
LINES = ("solid", "dashed", "dotted", "dashdot")  # where there are more than colours and markers
WIDTH = 6.2  # inches
INK = {"light": "#22262b", "dark": "#e4e6e9"}
GRID = {"light": "#d9dce0", "dark": "#3a3f46"}


@contextlib.contextmanager
def _themed(theme: str) -> Iterator[None]:
    ink = INK[theme]
    with plt.rc_context({
            "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": GRID[theme],
            "grid.color": GRID[theme], "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False,
            "axes.spines.right": False, "axes.prop_cycle": plt.cycler(color=COLOURS[theme]), "font.size": 10,
            "legend.frameon": False, "savefig.transparent": theme == "dark", "figure.constrained_layout.use": True}):
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
    with replacing(path) as temporary:
        temporary.write_bytes(png(draw))


def diversity(table: pd.DataFrame) -> Figure:
    """Mean cosine similarity within each class, one line a set; the columns of validate.diversity."""
    methods = list(dict.fromkeys(table["method"]))
    means = {method: table.loc[table["method"] == method, "similarity"].mean() for method in methods}
    first = table[table["method"] == methods[0]].sort_values("similarity", kind="stable")
    classes = first["class"].tolist()
    figure, axes = plt.subplots(figsize=(WIDTH, 3.7))
    for number, method in enumerate(methods):
        values = table[table["method"] == method].set_index("class")["similarity"].reindex(classes)
        many = len(classes) > 40
        axes.plot(range(len(classes)), values, color=_colour(number), marker=None if many else _marker(number), markersize=5,
                  linewidth=1.4, label=f"{method}, mean {means[method]:.3f}")
    named = len(classes) <= 40
    axes.set_xticks(range(len(classes)) if named else [], classes if named else [], rotation=35 if named else 0,
                    ha="right" if named else "center")
    axes.set_xlabel("" if named else f"{len(classes)} classes")
    axes.set_ylabel("cosine similarity of pairs\n(lower is more diverse)")
    axes.grid(axis="x", visible=False)
    _legend(figure)
    return figure


def curves(runs: list[tuple[str, list[list[dict]]]], name: str, label: str, log: bool = False) -> Figure:
    """The entry `name` of learning curves where it was measured; one colour a run (title, one curve a seed)."""
    figure, axes = plt.subplots(figsize=(WIDTH, 3.7))
    for number, (title, seeds) in enumerate(runs):
        points = pd.DataFrame([{"epoch": entry["epoch"], "value": entry[name]} for curve in seeds for entry in curve
                               if name in entry], columns=["epoch", "value"]).groupby("epoch")["value"]
        few = len(points) <= 40
        axes.errorbar(points.mean().index, points.mean(), points.std().fillna(0) if few else None, color=_colour(number),
                      marker=_marker(number) if few else None, markersize=5, linewidth=1.3, capsize=2, label=title,
                      linestyle=LINES[number // len(MARKERS) % len(LINES)])
    axes.set(xlabel="epoch", ylabel=label, yscale="log" if log else "linear")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure)
    return figure


def stages(seconds: dict[str, dict[str, float]]) -> Figure:
    """Seconds of each stage (in order), one bar a set."""
    names = list(dict.fromkeys(stage for found in seconds.values() for stage in found))
    figure, axes = plt.subplots(figsize=(WIDTH, 0.9 + 0.38 * len(seconds)))
    left = [0.0] * len(seconds)
    for number, stage in enumerate(names):
        widths = [found.get(stage, 0.0) / 60 for found in seconds.values()]
        axes.barh(list(seconds), widths, left=left, color=_colour(number), label=stage, height=0.65)
        left = [a + b for a, b in zip(left, widths)]
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
    figure.legend(loc="outside upper center", ncols=columns, fontsize=8.5)


def _colour(number: int) -> str:
    return f"C{number}"  # of the theme


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
