"""What runs measured, read from the result files of `python -m validate`."""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from utils.data import manifest
from utils.nets.teacher import unsaid_in
from utils.run.entry import one_line
from utils.run.errors import UserError
from utils.run.files import digest, read_json
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


@dataclass(frozen=True)
class Student:
    """What one seed gave. Accuracies are in percent."""

    top1: float  # of the last epoch
    best_top1: float
    top5: float
    seconds: float
    curve: list[dict[str, float]]  # of each epoch its number, loss, and top1 where it was measured
    processes: tuple[int, ...]  # that trained it together; several numbers if it was resumed with another one


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
    def group(self) -> tuple[str, int, str, str]:
        """Results are compared within these."""
        return self.dataset, self.ipc, self.teacher, self.student

    @property
    def conditions(self) -> str:
        """Equal for all sets that were measured alike: with as many images, under the same protocol, by the same
        teachers, student, processes and test images. A rate that was searched for is a set's own. Students whose number
        of processes changed are like no other set's."""
        return self._digest(("lr",) if self.settings.get("lr_search") else ())

    @property
    def conditions_but_rate(self) -> str:
        """The same, whatever the learning rate is."""
        return self._digest(RATE)

    def _digest(self, more: tuple[str, ...]) -> str:
        left_out = {*OF_THE_SET, *(TILES if self.settings.get("tiles_of_set") else ()), *more}
        processes = sorted({student.processes for student in self.seeds.values()})
        if any(len(numbers) > 1 for numbers in processes):
            left_out = set()  # nobody knows for how long there were as many
        kept = {name: value for name, value in self.settings.items() if name not in left_out}
        return digest({"ipc": self.ipc, "images": self.images, "processes": processes, "settings": kept})

    @property
    def subject(self) -> str:
        """Equal for what one set gave under several protocols, with the same teachers, student, test images, geometry
        and precision."""
        return digest([self.ipc, *(self.settings.get(name) for name in OF_THE_SUBJECT), unsaid_in(self.settings)])

    @property
    def words(self) -> tuple[str, ...]:
        """For `told_apart`: which set it is, then by which settings of the subject it was measured."""
        said = {name: value for name, value in self.settings.items() if value not in (None, False)}
        size = f"{said['input_size']} px" if "input_size" in said else ""
        named = [f"{name} {said[name]}" if name in said else "" for name in ("stem", "mean", "std", "precision")]
        unsaid = ", ".join(f"{name}: {value}" for name, value in unsaid_in(self.settings).items())
        return self.syn_dir, size, *named, "sync_bn" if "sync_bn" in said else "", unsaid, self.subject[:8]

    @property
    def set_title(self) -> str:
        return f"{self.method}, IPC {self.ipc}"

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
        if self.set_digest is None:
            return True
        try:
            return manifest.digest_of_images(self.set_dir) == self.set_digest
        except UserError:
            return False

    def mean(self, name: str) -> float:
        return statistics.fmean(getattr(student, name) for student in self.seeds.values())


def read(runs: Sequence[str | Path]) -> list[Measured]:
    """The results in the folders `runs`; those of one data set, IPC, teacher and student stand together.

    A seed that several runs have counts once, as the first of them has it. Raises UserError for a folder without
    results, and for a file that is none.
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
    return sorted(found.values(), key=lambda entry: entry.group)


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
    """What tables call each result's set: its method, and what tells it from others of that method in its group."""
    found = [""] * len(measured)
    for group in dict.fromkeys(one.group for one in measured):
        own = [k for k, one in enumerate(measured) if one.group == group]
        for k, name in zip(own, told_apart([(measured[k].method, *measured[k].words) for k in own])):
            found[k] = name
    return found


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
