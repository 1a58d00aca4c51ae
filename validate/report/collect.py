"""What runs measured, read from the result files of `python -m validate`."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

from utils.data.manifest import of_own_images
from utils.nets.teacher import unsaid_in
from utils.run.errors import UserError, one_line
from utils.run.files import differences, digest, read_json
from utils.run.progress import say_once
from validate.protocols import SQUARED

NAMES = {
    "dataset": str,
    "method": str,
    "ipc": int,
    "teacher": str,
    "student": str,
    "protocol": str,
    "epochs": int,
    "syn_dir": str,
}


# What a result's settings say of the images alone: sets that differ in nothing else are compared.
OF_THE_SET = ("method", "images", "weights", SQUARED)
TILES = ("tiles", "tile_share")  # of the set, too, where the protocol takes them from it
RATE = ("lr", "lr_search")
GEOMETRY = ("input_size", "mean", "std", "stem")
# What they say of no protocol; and, beside it, what teachers leave unsaid.
OF_THE_SUBJECT = ("method", "images", "student", "teachers", "test_images", "precision", "sync_bn", *GEOMETRY)
EVALUATIONS = "evaluations"  # how often a student was tested, which its last top-1 does not depend on


@dataclass(frozen=True)
class Student:
    """What one seed gave. Accuracies are in percent."""

    top1: float  # of the last epoch
    best_top1: float
    top5: float
    seconds: float
    curve: list[dict[str, float]]  # of each epoch its number, loss, and top1 where it was measured
    processes: tuple[int, ...]  # that trained it together; several numbers if it was resumed with another one

    @property
    def evaluations(self) -> int:
        """How often it was tested."""
        return sum("top1" in point for point in self.curve)


@dataclass(frozen=True)
class Measured:
    """One set under one protocol with one architecture; the seeds of all runs that had the same settings."""

    dataset: str
    method: str
    ipc: int
    teacher: str
    student: str
    protocol: str
    epochs: int
    syn_dir: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    run: Path
    seeds: dict[int, Student]
    images: int | None = None  # how many; earlier versions did not say it
    set_digest: str | None = None  # of its images, as its manifest had them
    known_dataset: str | None = None  # that `dataset` is, and not the name of a folder alone; see `_known`
    classes: int | None = None  # how many; earlier versions did not say it

    @property
    def group(self) -> tuple[Any, ...]:
        """Results are compared within these: of one data set, IPC, teacher and student, in the same circumstances."""
        return self.dataset, self.ipc, self.teacher, self.student, self.circumstances

    @property
    def circumstances(self) -> tuple[str, ...]:
        """By which teachers, on which test images, in which geometry and precision; in words, empty where not said."""
        said = {name: value for name, value in self.settings.items() if value not in (None, False)}
        digests = {name: value if isinstance(value, list) else [value] for name, value in said.items()}
        parts = [
            f"{word} {' '.join(str(digest)[:8] for digest in digests[name])}" if name in digests else ""
            for name, word in (("teachers", "teacher"), ("test_images", "test images"))
        ]
        parts.append(f"{said['input_size']} px" if "input_size" in said else "")
        parts += [f"{name} {said[name]}" if name in said else "" for name in ("stem", "mean", "std", "precision")]
        unsaid = ", ".join(f"{name}: {value}" for name, value in unsaid_in(self.settings).items())
        return (*parts, "sync_bn" if "sync_bn" in said else "", unsaid)

    @property
    def conditions(self) -> dict[str, Any]:
        """Equal for all sets that were measured alike: with as many images, under the same protocol, by the same
        teachers, student, processes and test images. A rate that was searched for is a set's own. Students whose number
        of processes changed are like no other set's."""
        return self._conditions(("lr",) if self.settings.get("lr_search") else ())

    @property
    def conditions_but_rate(self) -> dict[str, Any]:
        """The same, whatever the learning rate is."""
        return self._conditions(RATE)

    def _conditions(self, more: tuple[str, ...]) -> dict[str, Any]:
        left_out = {*OF_THE_SET, *(TILES if self.settings.get("tiles_of_set") else ()), *more, EVALUATIONS}
        processes = sorted({student.processes for student in self.seeds.values()})
        if any(len(numbers) > 1 for numbers in processes):
            left_out = {EVALUATIONS}  # nobody knows for how long there were as many
        kept = {name: value for name, value in self.settings.items() if name not in left_out}
        return {**kept, "images of the set": self.images, "images a class": self.ipc, "processes": processes}

    @property
    def subject(self) -> str:
        """Equal for what one set gave under several protocols, with the same teachers, student, test images, geometry
        and precision."""
        return digest([self.ipc, *(self.settings.get(name) for name in OF_THE_SUBJECT), unsaid_in(self.settings)])

    @property
    def words(self) -> tuple[str, ...]:
        """For `told_apart`: which set it is, then in which circumstances it was measured."""
        return self.syn_dir, *self.circumstances, self.subject[:8]

    @property
    def set_name(self) -> str:
        return f"{self.method} (earlier images)" if self.is_replaced else self.method

    @property
    def set_title(self) -> str:
        return f"{self.set_name}, IPC {self.ipc}"

    @property
    def title(self) -> str:
        return f"{self.set_title}, {self.student}, {self.protocol}"

    @property
    def top1(self) -> list[float]:
        """In the order of the seeds."""
        return [self.seeds[seed].top1 for seed in sorted(self.seeds)]

    @property
    def set_dir(self) -> Path:
        """Where the images are: as it was written, or beside the run if the whole folder was moved."""
        written = Path(self.syn_dir)
        moved = self.run / written.name
        return moved if os.path.isdir(moved) and not os.path.isdir(written) else written

    @property
    def is_there(self) -> bool:
        """Whether what is said of the set's folder is said of the images that were measured."""
        return self.set_digest in (None, self._digest_there)

    @property
    def is_replaced(self) -> bool:
        """Whether other images lie where those lay that were measured."""
        return not self.is_there and self._digest_there is not None

    @functools.cached_property
    def _digest_there(self) -> str | None:
        """Of the images that are in the set's folder; None where nothing says it."""
        return of_own_images(self.set_dir).digest

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(student, name) for student in self.seeds.values())


def read(runs: Sequence[str | Path]) -> list[Measured]:
    """The results in the folders `runs`; those of one data set, IPC, teacher and student stand together.

    A seed that several runs have counts once, as the first of them has it. What was measured twice and differs in the
    number of evaluations alone is there once, if one of both has all seeds of the other. Raises UserError for a folder
    without results, and for a file that is none.
    """
    found: dict[str, Measured] = {}
    for run in map(Path, runs):
        files = sorted((run / "results").glob("*.json"))
        if not files:
            raise UserError(
                f"{run}: holds no results (no {run / 'results'}/*.json); run `python -m validate` with "
                f"--output-dir {run} first"
            )
        for path in files:
            content = read_json(path)
            try:
                measured = _measured(content, run)
                settings = digest(measured.settings)
            except (KeyError, TypeError, OverflowError):
                raise UserError(f"{path}: is no result of validate; remove it, or give other runs") from None
            seeds = found.setdefault(settings, measured).seeds
            for seed, student in measured.seeds.items():
                seeds.setdefault(seed, student)
    return sorted(_once(found.values()), key=lambda entry: entry.group)


def _once(measured: Iterable[Measured]) -> Iterator[Measured]:
    """Those of which no other has all seeds by the same settings, and more of them, or more evaluations of each."""
    alike: dict[str, list[Measured]] = {}
    for one in measured:
        settings = {name: value for name, value in one.settings.items() if name != EVALUATIONS}
        alike.setdefault(digest(settings), []).append(one)
    for group in alike.values():
        group.sort(key=lambda one: (len(one.seeds), one.mean("evaluations")), reverse=True)
        for number, one in enumerate(group):
            if not any(one.seeds.keys() <= other.seeds.keys() for other in group[:number]):
                yield one


@contextlib.contextmanager
def left_out(what: str) -> Iterator[None]:
    """A UserError within costs `what`, and not all that is reported beside it: one line says so, and why."""
    try:
        yield
    except UserError as error:
        say_once(f"left out: {what} ({one_line(error)})")


def baseline(alike: Sequence[Measured]) -> Measured | None:
    """The random images to compare with, of those that were measured alike; of several sets none, as a line says.

    Those that are no longer on disk as they were measured, such as of an earlier draw, make room for those that are.
    """
    found = [one for one in alike if one.is_there] or list(alike)
    if len(found) > 1:
        folders = ", ".join(sorted({one.syn_dir for one in found}))
        say_once(f"no margin over random images, nor scores: several sets of these were measured alike: {folders}")
    return found[0] if len(found) == 1 else None


def told_apart(entries: Sequence[Sequence[str]]) -> list[str]:
    """The first word of each entry, and behind it what tells it from the others of that word, of those that follow.

    A word may be empty.
    """
    names = [entry[0] for entry in entries]
    for number in range(1, max(map(len, entries), default=0)):
        said: dict[str, set[str]] = {}
        for name, entry in zip(names, entries):
            said.setdefault(name, set()).add(entry[number])
        names = [
            f"{name} ({entry[number]})" if entry[number] and len(said[name]) > 1 else name
            for name, entry in zip(names, entries)
        ]
    return names


def names(measured: Sequence[Measured]) -> list[str]:
    """What the tables of its group call each result's set: its method, and what tells it from others of that method.

    So does how often it was tested, where seeds that do not cover each other were tested more or less often.
    """
    found = [""] * len(measured)
    for own in _alike(measured, lambda one: one.group):
        for k, name in zip(own, told_apart([(measured[k].set_name, *measured[k].words) for k in own])):
            found[k] = name
    for own in _alike(measured, lambda one: (one.subject, one.protocol)):
        entries = [
            (f"{one.mean('evaluations'):g} evaluations", digest(one.settings)[:8]) for one in (measured[k] for k in own)
        ]
        for k, name in zip(own, told_apart([(found[k], *words) for k, words in zip(own, entries)])):
            found[k] = name
    return found


def circumstances(measured: Sequence[Measured]) -> list[str]:
    """What tells each result's group from others of its data set, IPC, teacher and student, to be put behind a name."""
    found = [""] * len(measured)
    for own in _alike(measured, lambda one: one.group[:-1]):
        for k, words in zip(own, told_apart([("", *measured[k].circumstances) for k in own])):
            found[k] = words
    return found


def full_names(measured: Sequence[Measured]) -> list[str]:
    """What a table of several groups calls each result's set."""
    return [f"{name}{more}" for name, more in zip(names(measured), circumstances(measured))]


def _alike(measured: Sequence[Measured], key: Callable[[Measured], Any]) -> Iterator[list[int]]:
    """The positions of the results that are alike in `key`, for each value of it."""
    found: dict[Any, list[int]] = {}
    for k, one in enumerate(measured):
        found.setdefault(key(one), []).append(k)
    yield from found.values()


def baseline_of(one: Measured, random: Sequence[Measured]) -> Measured | None:
    """Of random images those that were measured as `one` was; None where there are none, or several, as a line says."""
    there = [other for other in random if (other.group, other.protocol) == (one.group, one.protocol)]
    if alike := [other for other in there if other.conditions == one.conditions]:
        return baseline(alike)
    if there:
        found = differences(there[0].conditions, one.conditions)
        say_once(f"no margin of {one.title} over random images, which were measured otherwise: {found}")
    return None


def _measured(content: Any, run: Path) -> Measured:
    """Raises KeyError, TypeError or OverflowError where `content` is no result."""
    names = {name: (_count if kind is int else _text)(content[name]) for name, kind in NAMES.items()}
    seeds = {_typed(entry["seed"], int): _student(entry) for entry in _typed(content["seeds"], list)}
    if not seeds:
        raise KeyError("seeds")
    more = {"images": _optional(content, "images", _count), "set_digest": _optional(content, "set", _text)}
    more |= {"known_dataset": _known(content), "classes": _optional(content, "classes", _count)}
    parts = {"arguments": _typed(content.get("arguments", {}), dict), "settings": _typed(content["settings"], dict)}
    return Measured(**names, **parts, **more, run=run, seeds=seeds)


def _known(content: dict[str, Any]) -> str | None:
    """Earlier versions did not say whether the data set was known: what they call it, then."""
    return _optional(content, "known_dataset" if "known_dataset" in content else "dataset", str)


def _student(entry: dict[str, Any]) -> Student:
    numbers = {name: _number(entry[name]) for name in ("top1", "best_top1", "top5", "seconds")}
    curve = [{name: _number(value) for name, value in point.items()} for point in _objects(entry["curve"])]
    if any("epoch" not in point for point in curve):
        raise KeyError("epoch")
    return Student(**numbers, curve=curve, processes=_processes(entry.get("processes")))


def _processes(value: Any) -> tuple[int, ...]:
    """One where nothing is noted, as in results of earlier versions."""
    return tuple(_count(number) for number in (value if isinstance(value, list) else [value or 1]))


def _objects(value: Any) -> list[dict]:
    return [_typed(entry, dict) for entry in _typed(value, list)]


def _number(value: Any) -> float:
    number = float(_typed(value, (int, float)))
    if not abs(number) < 1e12:  # nor NaN: more than was ever measured in percent, seconds or epochs
        raise OverflowError
    return number


def _count(value: Any) -> int:
    if not 0 <= _typed(value, int) < 2**31:  # more than there ever were of epochs, images or processes
        raise OverflowError
    return value


def _text(value: Any) -> str:
    return _typed(value, str)


def _optional(content: Any, name: str, checked: Callable[[Any], Any]) -> Any:
    return None if content.get(name) is None else checked(content[name])


def _typed(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError
    return value
