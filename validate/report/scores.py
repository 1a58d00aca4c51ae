"""DD-Ranking's scores (arXiv 2505.13300, section 3): what a set is worth beyond random images, labels, augmentation."""

from __future__ import annotations

import math
import statistics
from typing import Iterable, Sequence

import pandas as pd

from validate.report import collect
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
    rows = []
    names = dict(zip((entry.subject for entry in measured), collect.names(measured)))
    for subject in dict.fromkeys(entry.subject for entry in measured):
        own = [entry for entry in measured if entry.subject == subject]
        soft, plain, hard = (_one(own, name) for name in ("delt", "noaug", "hard"))
        random, random_plain = (_random(measured, entry) for entry in (soft, plain))
        whole = full_hard or teacher_top1(own[0])
        scores, searched = {}, {"LRS": _searched(hard, random), "ARS": _searched(random, random_plain)}
        if None not in (soft, random, hard, whole):
            scores["LRS"] = label_robust(*map(_fraction, (soft, random)), whole / 100, _fraction(hard))
        if None not in (soft, random, plain, random_plain):
            scores["ARS"] = augmentation_robust(*map(_fraction, (soft, random, plain, random_plain)))
        if scores:
            said = _said({name: searched[name] for name in scores})
            rows.append([*own[0].group, names[subject], scores.get("LRS"), scores.get("ARS"), said])
    return pd.DataFrame(rows, columns=COLUMNS)


def _one(entries: Iterable[Measured], protocol: str) -> Measured | None:
    """The one under a protocol, with its rate searched for if there is such a one; of several none."""
    for name in (protocol + SEARCHED, protocol):
        if found := [entry for entry in entries if entry.protocol == name]:
            return found[0] if len(found) == 1 else None
    return None


def _random(measured: Sequence[Measured], entry: Measured | None) -> Measured | None:
    """The random images that were measured as `entry` was, but for the rate, which may be their own best."""
    if entry is None:
        return None
    alike = [
        one
        for one in measured
        if one.method == "random" and one.group == entry.group and one.conditions_but_rate == entry.conditions_but_rate
    ]
    return _one(alike, entry.protocol.removesuffix(SEARCHED))


def _searched(*entries: Measured | None) -> bool:
    return all(entry is not None and entry.protocol.endswith(SEARCHED) for entry in entries)


def _fraction(entry: Measured) -> float:
    return statistics.fmean(entry.top1) / 100


def _said(searched: dict[str, bool]) -> str:
    """Which scores have DD-Ranking's search of learning rates, and what follows for those that have not."""
    found = ", ".join(name for name, done in searched.items() if done) or "none"
    rest = " and ".join(name for name, done in searched.items() if not done)
    return f"{found} ({rest}: not comparable with DD-Ranking's leaderboard)" if rest else found
