"""DD-Ranking's scores (arXiv 2505.13300, section 3): what a set is worth beyond random images, labels, augmentation."""

from __future__ import annotations

import math
import statistics
from typing import Sequence

import pandas as pd

from validate.report.collect import Measured
from validate.report.origins import teacher_top1

COLUMNS = ["dataset", "ipc", "teacher", "student", "method", "LRS", "ARS", "lr_search"]
TITLES = {"lr_search": "rates searched for"}
SEARCHED = " lr=search"  # at the end of a protocol's name


def label_robust(syn_any: float, random_any: float, full_hard: float, syn_hard: float, weight: float = 0.5) -> float:
    """LRS, from 0 to 1, of accuracies as fractions.

    `syn_any` and `random_any` are the distilled and the random images under the same labels, whatever these are;
    `full_hard` and `syn_hard` the whole data set and the distilled images with hard labels.
    """
    return _to_unit(weight * (syn_any - random_any) - (1 - weight) * (full_hard - syn_hard))


def augmentation_robust(syn: float, random: float, syn_plain: float, random_plain: float, weight: float = 0.5) -> float:
    """ARS, from 0 to 1, of accuracies as fractions: with the protocol's augmentation, and without any."""
    return _to_unit(weight * (syn - random) + (1 - weight) * (syn_plain - random_plain))


def _to_unit(difference: float) -> float:
    """-1 to 0, 1 to 1, exponentially between them."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def table(measured: Sequence[Measured], full_hard: float | None) -> pd.DataFrame:
    """LRS and ARS of each set for which what they need was measured, once.

    LRS needs the set under the protocols delt and hard, and random images under delt; ARS both sets under delt and
    noaug. What was measured with --lr search is taken before what was not. `lr_search` says which of the scores have
    all the searches that DD-Ranking's code makes: of hard labels, and of random images. `full_hard`: the student's
    top-1 on the whole data set with hard labels, in percent; if None the teacher's own, where it is of the student's
    architecture. What was measured under several settings is not unique, and gives no score.
    """
    found: dict[tuple, list[Measured]] = {}
    for entry in measured:
        found.setdefault((*entry.group, entry.method, entry.protocol), []).append(entry)

    def top1(group: tuple, method: str, protocol: str) -> tuple[float | None, bool]:
        """As a fraction, and whether its learning rate was searched."""
        for name in (protocol + SEARCHED, protocol):
            if entries := found.get((*group, method, name)):
                return (statistics.fmean(entries[0].top1) / 100 if len(entries) == 1 else None), name != protocol
        return None, False

    first = {entry.group: entry for entry in reversed(measured)}
    rows = []
    for *names, method in dict.fromkeys((*entry.group, entry.method) for entry in measured):
        group = tuple(names)
        (soft, _), (plain, _), (hard, hard_searched) = (top1(group, method, name) for name in ("delt", "noaug", "hard"))
        (random, random_searched), (random_plain, plain_searched) = (
            top1(group, "random", name) for name in ("delt", "noaug")
        )
        whole = full_hard or teacher_top1(first[group])
        scores, searched = {}, {"LRS": hard_searched and random_searched, "ARS": random_searched and plain_searched}
        if None not in (soft, random, hard, whole):
            scores["LRS"] = label_robust(soft, random, whole / 100, hard)
        if None not in (soft, random, plain, random_plain):
            scores["ARS"] = augmentation_robust(soft, random, plain, random_plain)
        if scores:
            said = _said({name: searched[name] for name in scores})
            rows.append([*group, method, scores.get("LRS"), scores.get("ARS"), said])
    return pd.DataFrame(rows, columns=COLUMNS)


def _said(searched: dict[str, bool]) -> str:
    """Which scores have DD-Ranking's search of learning rates, and what follows for those that have not."""
    found = ", ".join(name for name, done in searched.items() if done) or "none"
    rest = " and ".join(name for name, done in searched.items() if not done)
    return f"{found} ({rest}: not comparable with DD-Ranking's leaderboard)" if rest else found
