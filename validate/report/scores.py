"""DD-Ranking's scores (arXiv 2505.13300, section 3): what a set is worth beyond random images, labels, augmentation."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Iterable, Sequence

import pandas as pd

from utils.run.errors import UserError, listed
from utils.run.progress import say_once
from validate.report import collect
from validate.report.collect import Measured, baseline
from validate.report.origins import teacher_top1

COLUMNS = ["dataset", "ipc", "teacher", "student", "method", "LRS", "ARS", "lr_search"]
TITLES = {"lr_search": "rates searched for"}
SEARCHED = " lr=search"  # at the end of a protocol's name
FullHard = tuple[str | None, float]  # the architecture of a student, if it is said, and its top-1 in percent


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


@dataclass(frozen=True)
class _Parts:
    """What the scores of a set are made of, as far as it was measured, once."""

    first: Measured  # of what was measured of the set, under any protocol
    soft: Measured | None
    plain: Measured | None
    hard: Measured | None
    random: Measured | None  # measured as `soft`
    random_plain: Measured | None  # measured as `plain`

    @classmethod
    def of(cls, measured: Sequence[Measured], subject: str) -> _Parts:
        own = [entry for entry in measured if entry.subject == subject]
        soft, plain, hard = (_one(own, name) for name in ("delt", "noaug", "hard"))
        return cls(own[0], soft, plain, hard, *(_random(measured, entry) for entry in (soft, plain)))

    @property
    def student(self) -> tuple[str, str]:
        """The data set and the architecture: for each there is one top-1 on the whole data set."""
        return self.first.dataset, self.first.student

    @property
    def needs_whole(self) -> bool:
        return None not in (self.soft, self.random, self.hard)


def table(measured: Sequence[Measured], full_hard: Sequence[FullHard] = ()) -> pd.DataFrame:
    """LRS and ARS of each set for which what they need was measured, once.

    LRS needs the set under the protocols delt and hard, and random images under delt; ARS both sets under delt and
    noaug. What was measured with --lr search is taken before what was not. `lr_search` says which of the scores have
    all the searches that DD-Ranking's code makes: of hard labels, and of random images. The top-1 on the whole data set
    with hard labels is the teacher's own, where it is of the student's architecture, else that of `full_hard`. What was
    measured under several settings is not unique, and gives no score. Raises UserError where one of `full_hard` could
    be of several students.
    """
    parts = [_Parts.of(measured, subject) for subject in dict.fromkeys(entry.subject for entry in measured)]
    own = [teacher_top1(one.first) if one.needs_whole else None for one in parts]
    given = _settled(full_hard, {one.student for one, whole in zip(parts, own) if one.needs_whole and whole is None})
    rows = []
    names = dict(zip((entry.subject for entry in measured), collect.full_names(measured)))
    for one, whole in zip(parts, own):
        whole = given.get(one.student) if whole is None else whole
        soft, plain, hard, random, random_plain = one.soft, one.plain, one.hard, one.random, one.random_plain
        scores, searched = {}, {"LRS": _searched(hard, random), "ARS": _searched(random, random_plain)}
        if one.needs_whole and whole is not None:
            scores["LRS"] = label_robust(*map(_fraction, (soft, random)), whole / 100, _fraction(hard))
        if None not in (soft, random, plain, random_plain):
            scores["ARS"] = augmentation_robust(*map(_fraction, (soft, random, plain, random_plain)))
        if scores:
            said = _said({name: searched[name] for name in scores})
            rows.append([*one.first.group[:4], names[one.first.subject], scores.get("LRS"), scores.get("ARS"), said])
    return pd.DataFrame(rows, columns=COLUMNS)


def _settled(full_hard: Sequence[FullHard], students: set[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Data set and architecture -> the top-1 that was given for it. `students` are those that need one."""
    found = {}
    for arch, top1 in full_hard:
        meant = sorted(student for student in students if arch in (None, student[1]))
        word = f"--full-hard {'' if arch is None else f'{arch}='}{top1:g}"
        if len(meant) > 1:
            raise UserError(
                f"{word}: could be of {listed([f'{student} on {dataset}' for dataset, student in meant], 4)}; give one "
                "for each as ARCH=PERCENT, and report data sets one by one"
            )
        twice = [student for student in meant if found.get(student, top1) != top1]
        if twice:
            raise UserError(f"{word}: {found[twice[0]]:g} was given for {twice[0][1]} as well; give one for each")
        if not meant:
            say_once(f"{word}: no LRS needs it: the teacher's own is taken where it is of the student's architecture")
        found |= dict.fromkeys(meant, top1)
    return found


def _one(entries: Iterable[Measured], protocol: str) -> Measured | None:
    """The one under a protocol, with its rate searched for if there is such a one; of several none."""
    found = _under(entries, protocol)
    return found[0] if len(found) == 1 else None


def _under(entries: Iterable[Measured], protocol: str) -> list[Measured]:
    """Those under a protocol with their rates searched for; where there are none, those without."""
    entries = list(entries)
    searched = [entry for entry in entries if entry.protocol == protocol + SEARCHED]
    return searched or [entry for entry in entries if entry.protocol == protocol]


def _random(measured: Sequence[Measured], entry: Measured | None) -> Measured | None:
    """The random images that were measured as `entry` was, but for the rate, which may be their own best."""
    if entry is None:
        return None
    alike = [
        one
        for one in measured
        if one.method == "random" and one.group == entry.group and one.conditions_but_rate == entry.conditions_but_rate
    ]
    return baseline(_under(alike, entry.protocol.removesuffix(SEARCHED)))


def _searched(*entries: Measured | None) -> bool:
    return all(entry is not None and entry.protocol.endswith(SEARCHED) for entry in entries)


def _fraction(entry: Measured) -> float:
    return statistics.fmean(entry.top1) / 100


def _said(searched: dict[str, bool]) -> str:
    """Which scores have DD-Ranking's search of learning rates, and what follows for those that have not."""
    found = ", ".join(name for name, done in searched.items() if done) or "none"
    rest = " and ".join(name for name, done in searched.items() if not done)
    return f"{found} ({rest}: not comparable with DD-Ranking's leaderboard)" if rest else found
