"""Results: one JSON a run, one row a seed in results.csv."""

from __future__ import annotations

import contextlib
import csv
import re
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator

from utils.run import distributed
from utils.run.errors import UserError
from utils.run.files import digest, read_json, replacing, shortened, write_json
from utils.run.outputs import locked

COLUMNS = [
    "dataset",
    "method",
    "ipc",
    "teacher",
    "student",
    "protocol",
    "seed",
    "top1",
    "best_top1",
    "top5",
    "epochs",
    "seconds",
    "syn_dir",
    "settings",
]


@dataclass
class Result:
    """Accuracies in percent; `curve` has one entry an epoch, with top-1 where it was measured.

    `processes` trained the student together: each one's BatchNorm saw its part of a batch. A list of their numbers
    where the student went on with another one. None: it was not noted.
    """

    seed: int
    top1: float
    best_top1: float
    top5: float
    seconds: float
    curve: list[dict] = field(default_factory=list)
    processes: int | list[int] | None = None

    @property
    def numbers(self) -> set[int]:
        """Of the processes that trained it; empty if it was not noted."""
        return set(self.processes) if isinstance(self.processes, list) else {self.processes} - {None}


NAME_DIGITS = 8  # of the digest of a run's settings, at the end of its file's name
SETTINGS_DIGITS = 16  # of the digest: rows of different settings are not averaged


def path_of(folder: str | Path, settings: dict, facts: dict) -> Path:
    """The JSON of the run of these `settings`, under the name that was given to the set."""
    method = settings.get("method", facts["method"])
    name = file_name(method, facts["student"], facts["protocol"], digest(settings)[:NAME_DIGITS])
    return Path(folder) / "results" / f"{name}.json"


def _as_stored(folder: str | Path, settings: dict, facts: dict) -> dict:
    """`facts` under the protocol's name by which these very settings were measured: a flag may say what it has anyway.

    As they are where nothing was, or can be read.
    """
    path = path_of(folder, settings, facts)
    others = [] if path.exists() else sorted(path.parent.glob(f"*_{digest(settings)[:NAME_DIGITS]}.json"))
    for other in others:
        with contextlib.suppress(UserError, TypeError, KeyError):
            content = read_json(other)
            if digest(content["settings"]) == digest(settings) and isinstance(content["protocol"], str):
                found = {**facts, "protocol": content["protocol"]}
                if path_of(folder, settings, found) == other:
                    return found
    return facts


class Run:
    """One student architecture on one set under one protocol, over seeds; found again on disk by its `settings`."""

    def __init__(self, folder: str | Path, settings: dict, facts: dict):
        """`facts` are the columns that are the same for all seeds. Raises UserError for an unreadable older file."""
        self.folder, self.settings, self.facts = Path(folder), settings, facts
        self.path = path_of(folder, settings, facts)
        self.results = distributed.by_main(self._stored)
        if self.results and distributed.get_rank() == 0:
            self._say_facts()
            for result in self.results.values():
                self._add_row(result)  # lost if the process died between the two files

    @classmethod
    @contextlib.contextmanager
    def claimed(cls, folder: str | Path, settings: dict, facts: dict) -> Iterator[Run]:
        """The run as it is on disk, of which no other process stores anything meanwhile.

        Other runs of the folder may be measured by other processes. Raises UserError where another one measures this.
        """
        facts = distributed.by_main(lambda: _as_stored(folder, settings, facts))
        with locked(path_of(folder, settings, facts)):
            run = cls(folder, settings, facts)
            run._say_unfinished()
            yield run

    def _say_unfinished(self) -> None:
        """A line for students of the same name by other settings, which nobody trains to their end."""
        name, own = self.path.stem[:-NAME_DIGITS], self.path.stem[-NAME_DIGITS:]
        form = rf"\.{re.escape(name)}(?!{own})[0-9a-f]{{{NAME_DIGITS}}}_seed\d+\.state"
        found = [path for path in self.path.parent.glob(".*.state") if re.fullmatch(form, path.name)]
        if found and distributed.get_rank() == 0:
            others = f" and {len(found) - 1} more" * (len(found) > 1)
            print(
                f"validate: {min(found)}{others}: an unfinished student of other settings (teacher, images or flags "
                "were others); the same command as then goes on with it, else remove the file"
            )

    def _stored(self) -> dict[int, Result]:
        """The finished seeds on disk. Raises UserError as the constructor does."""
        if (rows := self.folder / "results.csv").exists():
            read_rows(rows)  # for its errors: before hours of training, not after them
        try:
            stored = read_json(self.path)["seeds"] if self.path.exists() else []
            results = {entry["seed"]: Result(**entry) for entry in stored}
            if not all(
                isinstance(value, (int, float))
                for one in results.values()
                for value in (one.seed, one.top1, one.best_top1, one.top5, one.seconds, *one.numbers)
            ):
                raise TypeError
        except (TypeError, KeyError):
            raise UserError(f"{self.path}: is not a result of this stage; remove it to measure anew") from None
        return results

    def _say_facts(self) -> None:
        """Put what earlier versions did not say into the file, of the very images that its settings name."""
        content = read_json(self.path)
        said = {**self.facts, **content, "method": self.facts["method"]}  # they gave the recipe's name alone
        if said != content:
            write_json(self.path, said)

    def add(self, result: Result, **more: object) -> None:
        """Store a finished seed: the JSON first, then its row."""
        self.results[result.seed] = result
        if distributed.get_rank():
            return  # rank 0 writes for all
        ordered = [self.results[seed] for seed in sorted(self.results)]
        write_json(
            self.path,
            {
                **self.facts,
                **more,
                **summary(ordered),
                "settings": self.settings,
                "seeds": [asdict(entry) for entry in ordered],
            },
        )
        self._add_row(result)

    def _add_row(self, result: Result) -> None:
        """The seed's row in results.csv, unless it is there already."""
        row = {
            **self.facts,
            "settings": digest(self.settings)[:SETTINGS_DIGITS],
            "seed": result.seed,
            "top1": f"{result.top1:.2f}",
            "best_top1": f"{result.best_top1:.2f}",
            "top5": f"{result.top5:.2f}",
            "seconds": f"{result.seconds:.1f}",
        }
        path = self.folder / "results.csv"
        with locked(path, wait=120):  # another process may add a row of another run
            append_row(path, {name: str(row[name]) for name in COLUMNS})


def file_name(*words: str) -> str:
    """The words as a part of a path."""
    return shortened(re.sub(r"[^\w.-]+", "_", "_".join(words)), 180)  # more is added to it


def summary(results: list[Result]) -> dict[str, float]:
    """Mean and standard deviation (of the sample; 0 for one seed) of the last epoch's top-1, and the best's mean."""
    top1 = [result.top1 for result in results]
    return {
        "top1_mean": round(statistics.fmean(top1), 4),
        "top1_std": round(statistics.stdev(top1), 4) if len(top1) > 1 else 0.0,
        "best_top1_mean": round(statistics.fmean(result.best_top1 for result in results), 4),
    }


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a results.csv. Raises UserError if it has other columns."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            # Files of earlier versions have no digest of the settings.
            if rows.fieldnames not in (COLUMNS, COLUMNS[:-1]):
                raise UserError(f"{path}: its columns are not {','.join(COLUMNS)}; give another --output-dir")
            return [{name: row.get(name) or "" for name in COLUMNS} for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as results ({error}); run `python -m validate` first") from None


def append_row(path: Path, row: dict[str, str]) -> None:
    """Add a row, in the place of an earlier one of the same settings and seed."""
    rows = read_rows(path) if path.exists() else []
    if row in rows:
        return
    same = [one["settings"] == row["settings"] and one["seed"] == row["seed"] for one in rows]
    place = same.index(True) if any(same) else len(rows)
    rows = [one for one, found in zip(rows, same) if not found]
    rows.insert(place, row)
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
