"""What the report shows, read from the files of finished runs."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from utils import checkpoints
from utils.files import MANIFEST, UserError, digest, read_json
from validate import published, scores

GROUP = ["dataset", "ipc", "teacher", "student"]  # what is compared within


@dataclass
class Measured:
    """One set under one protocol with one student; the seeds of all runs that had the same settings."""

    facts: dict[str, Any]  # dataset, method, ipc, teacher, student, protocol, epochs, syn_dir
    settings: dict[str, Any]
    arguments: dict[str, Any]
    run: Path
    seeds: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.facts['method']}, IPC {self.facts['ipc']}, {self.facts['student']}, {self.facts['protocol']}"

    @property
    def top1(self) -> list[float]:
        return [self.seeds[seed]["top1"] for seed in sorted(self.seeds)]

    @property
    def set_dir(self) -> Path:
        """Where the images are; as it was written, or beside the run if the whole folder was moved."""
        written = Path(self.facts["syn_dir"])
        moved = self.run / written.name
        return moved if moved.is_dir() and not written.is_dir() else written

    def mean(self, name: str) -> float:
        return statistics.fmean(entry[name] for entry in self.seeds.values())


def read(runs: list[str]) -> list[Measured]:
    """The results in the folders `runs`, in their order. Raises UserError for a folder without any, or a strange file."""
    found: dict[str, Measured] = {}
    for run in map(Path, runs):
        files = sorted((run / "results").glob("*.json"))
        if not files:
            raise UserError(f"{run}: holds no results (no {run / 'results'}/*.json); run `python -m validate` with "
                            f"--output-dir {run} first")
        for path in files:
            content = read_json(path)
            try:
                facts = {name: content[name] for name in (*GROUP, "method", "protocol", "epochs", "syn_dir")}
                entry = found.setdefault(digest(content["settings"]), Measured(
                    facts, content["settings"], content.get("arguments", {}), run))
                for seed in content["seeds"]:
                    entry.seeds.setdefault(seed["seed"], {name: seed[name] for name in (
                        "top1", "best_top1", "top5", "seconds", "curve")})
            except (KeyError, TypeError):
                raise UserError(f"{path}: is no result of validate; remove it, or give other runs") from None
    return sorted(found.values(), key=lambda entry: [entry.facts[name] for name in GROUP])


def table(measured: list[Measured]) -> pd.DataFrame:
    """One row a set, protocol and student, and the published figures of the same networks below them."""
    rows = []
    for entry in measured:
        rows.append({**{name: entry.facts[name] for name in ("dataset", "ipc", "method", "teacher", "student", "protocol")},
                     "top1": round(statistics.fmean(entry.top1), 2),
                     "std": round(statistics.stdev(entry.top1), 2) if len(entry.top1) > 1 else None,
                     "seeds": len(entry.top1), "best_top1": round(entry.mean("best_top1"), 2),
                     "top5": round(entry.mean("top5"), 2), "epochs": entry.facts["epochs"],
                     "seconds": round(entry.mean("seconds"), 1), "source": "measured"})
    for dataset, ipc, teacher, student in dict.fromkeys(tuple(entry.facts[name] for name in GROUP) for entry in measured):
        rows += [{"dataset": dataset, "ipc": ipc, "method": method, "teacher": teacher, "student": student, "protocol": "",
                  "top1": top1, "source": "published"}
                 for method, top1 in published.beside(dataset, ipc, teacher, student).items()]
    frame = pd.DataFrame(rows)
    whole = ["seeds", "epochs"]
    frame[whole] = frame[whole].astype("Int64")
    frame["std"] = frame["std"].astype(float)
    return frame.sort_values(["dataset", "ipc", "student"], kind="stable", ignore_index=True)


def ranking(measured: list[Measured], full_hard: float | None) -> pd.DataFrame:
    """LRS and ARS of each set that was measured by what they need; `full_hard` in percent, or the teacher's own top-1.

    LRS needs the set under delt and hard, and random images under delt; ARS both under delt and noaug.
    """
    by = {(*(entry.facts[name] for name in GROUP), entry.facts["method"], entry.facts["protocol"]): entry
          for entry in measured}

    def top1(group: tuple, method: str, protocol: str) -> float | None:
        entry = by.get((*group, method, protocol))
        return statistics.fmean(entry.top1) / 100 if entry else None

    rows = []
    for *group, method in dict.fromkeys((*(entry.facts[name] for name in GROUP), entry.facts["method"]) for entry in measured):
        soft, random = top1(group, method, "delt"), top1(group, "random", "delt")
        hard, whole = top1(group, method, "hard"), full_hard or _teachers(by, group)
        plain, random_plain = top1(group, method, "noaug"), top1(group, "random", "noaug")
        lrs = scores.label_robust(soft, random, whole / 100, hard) if None not in (soft, random, hard, whole) else None
        ars = scores.augmentation_robust(soft, random, plain, random_plain) \
            if None not in (soft, random, plain, random_plain) else None
        if lrs is not None or ars is not None:
            rows.append([*group, method, lrs, ars, whole if lrs is not None else None])
    return pd.DataFrame(rows, columns=[*GROUP, "method", "LRS", "ARS", "full_hard"])


def _teachers(by: dict, group: tuple | list) -> float | None:
    """The teacher's top-1 in percent, where it is of the student's architecture and says so."""
    entry = next(entry for key, entry in by.items() if list(key[:len(GROUP)]) == list(group))
    same = entry.facts["teacher"] == entry.facts["student"]
    return _teacher(entry.arguments.get("teacher_path")).get("top1") if same else None


@functools.cache
def _teacher(path: str | None) -> dict[str, Any]:
    """What the checkpoint says of itself; nothing if it is no longer there. Read once: it holds the weights, too."""
    content = checkpoints.read(path) if path and Path(path).is_file() else {}
    return {name: value for name, value in content.items() if name != "model"}


def manifest(folder: Path) -> dict[str, Any]:
    """What ranking or recover wrote beside the images; empty for a folder of other make."""
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else {}


def start_of(folder: Path) -> Path | None:
    """The folder of images that a recovered set started from, if it is known and there; None for one that began as noise."""
    record = manifest(folder)
    init = record.get("arguments", {}).get("init_dir") if record.get("settings", {}).get("init") != "noise" else None
    return next((path for path in (Path(init), folder.parent / Path(init).name) if path.is_dir()), None) if init else None


def updates(folder: Path) -> list[int] | None:
    """How many updates each rank of a recovered set had, by its manifest; None for other sets."""
    record = manifest(folder)
    settings = record.get("settings", {})
    if "round_iterations" not in settings or not isinstance(record.get("images"), dict):
        return None
    rounds = {Path(name).name.split("_")[0]: entry["round"] for name, entry in record["images"].items()}
    return [settings["iterations"] - rounds[rank] * settings["round_iterations"] for rank in sorted(rounds)]


def seconds(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """Set -> stage -> seconds; of validate one student's."""
    found: dict[str, dict[str, float]] = {}
    for entry in measured:
        name = f"{entry.facts['method']}, IPC {entry.facts['ipc']}, {entry.facts['student']}"
        if name in found:
            continue
        record = manifest(entry.set_dir)
        recovered = "units" in record
        start = start_of(entry.set_dir) if recovered else entry.set_dir
        stages = {"squeeze": _teacher(entry.arguments.get("teacher_path")).get("seconds"),
                  "ranking": manifest(start).get("seconds") if start else None,
                  "recover": record.get("seconds") if recovered else None, "validate": entry.mean("seconds")}
        found[name] = {stage: value for stage, value in stages.items() if value}
    return found
