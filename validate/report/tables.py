"""The tables: of results on the page and in Markdown, and the small one at the end of a script."""

from __future__ import annotations

import statistics
from typing import Any, Sequence

import pandas as pd

from utils.run.markdown import table
from validate.report import collect, published
from validate.report.collect import Measured

# Columns of the results that are shown, and their headings; the deviation stands in the cell of the top-1.
TITLES = {
    "dataset": "data set",
    "ipc": "IPC",
    "method": "set",
    "teacher": "teacher",
    "student": "student",
    "protocol": "protocol",
    "top1": "top-1",
    "seeds": "seeds",
    "best_top1": "best epoch",
    "top5": "top-5",
    "epochs": "epochs",
    "seconds": "seconds",
    "source": "source",
}
# What a narrow screen leaves out at first.
DETAILS = ("dataset", "ipc", "teacher", "seeds", "best_top1", "top5", "epochs", "seconds", "source")
NUMBERS = ("ipc", "top1", "seeds", "best_top1", "top5", "epochs", "seconds")
PUBLISHED = "published"


def results(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row for each set, protocol and student, and below them what was published of these networks and data."""
    rows = []
    for entry, name in zip(measured, collect.full_names(measured)):
        row = {word: getattr(entry, word) for word in ("dataset", "ipc", "teacher", "student", "protocol")}
        row |= {
            "method": name,
            "top1": round(statistics.fmean(entry.top1), 2),
            "std": round(statistics.stdev(entry.top1), 2) if len(entry.top1) > 1 else None,
            "seeds": len(entry.top1),
            "best_top1": round(entry.mean("best_top1"), 2),
            "top5": round(entry.mean("top5"), 2),
            "epochs": entry.epochs,
            "seconds": round(entry.mean("seconds"), 1),
            "source": "measured",
        }
        rows.append(row)
    named = ("dataset", "ipc", "teacher", "student")
    networks = {entry.group[: len(named)]: found for entry in measured if (found := published.beside(entry))}
    for group, known in networks.items():
        names = dict(zip(named, group))
        for method, top1 in known.items():
            rows.append({**names, "method": method, "protocol": "", "top1": top1, "source": PUBLISHED})
    frame = pd.DataFrame(rows)
    whole = ["seeds", "epochs"]
    frame[whole] = frame[whole].astype("Int64")
    frame["std"] = frame["std"].astype(float)
    return frame.sort_values(["dataset", "ipc", "student"], kind="stable", ignore_index=True)


def cell(name: str, row: Any) -> str:
    """A cell of the results as people read it."""
    value = row[name]
    if pd.isna(value):
        return ""
    if name == "top1":
        return f"{value:.2f}" if pd.isna(row["std"]) else f"{value:.2f} ± {row['std']:.2f}"
    if name in ("best_top1", "top5"):
        return f"{value:.2f}"
    return f"{value:.0f}" if name == "seconds" else str(value)


def markdown(frame: pd.DataFrame) -> str:
    return table(list(TITLES.values()), ([cell(name, row) for name in TITLES] for _, row in frame.iterrows()))


def summary(rows: pd.DataFrame) -> str:
    """The rows of a results.csv as text: a line for each student and set, a column for each protocol.

    Only rows of the same settings are averaged. What was measured under several settings has a line for each of them,
    with the start of the settings' digest, which is also the end of its file's name in results/. Sets of one name that
    lie in several folders, or that other teachers labelled, have a line each, too.
    """
    names = ["student", "method", "ipc"]
    labelled = rows[rows["teacher"] != "none"]  # which hard labels need not have
    names += [name for name, found in (("teacher", labelled), ("syn_dir", rows)) if _differs(found, names, name)]
    kinds = rows.groupby([*names, "protocol"], sort=False)["settings"].transform("nunique")
    rows = rows.assign(digest=rows["settings"].str[:8].where(kinds > 1, ""))
    lines = [*names, "digest"]
    found = rows.groupby([*lines, "protocol", "settings"], sort=False)["top1"].agg(_mean)
    found = found.droplevel("settings").unstack("protocol").fillna("-").reset_index()
    found = found.rename(columns={"digest": "settings"}) if (kinds > 1).any() else found.drop(columns="digest")
    return found.to_string(index=False)


def _differs(rows: pd.DataFrame, names: list[str], name: str) -> bool:
    """Whether rows that are alike in `names` have several values of `name`."""
    return bool((rows.groupby(names)[name].nunique() > 1).any())


def _mean(top1: pd.Series) -> str:
    return f"{top1.mean():.2f}" + (f" ± {top1.std():.2f}" if len(top1) > 1 else "")
