"""Work units: which images are optimised together, and what of them is on disk already."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.files import MANIFEST, UserError, claim, read_json, sha256, write_json
from utils.images import save_image

RECORDS = ".units"  # one JSON for each finished unit, folded into the manifest when all are


def _read_record(path: Path) -> Any:
    """None if it is not there, or not whole."""
    with contextlib.suppress(UserError):
        return read_json(path)
    return None


@dataclass(frozen=True)
class Unit:
    """`members` are (class label, rank) pairs; a unit depends on nothing but them, the arguments and its stream."""

    number: int
    members: tuple[tuple[int, int], ...]


def split(num_classes: int, ipc: int, batch_size: int, batch_by: str) -> list[Unit]:
    """All units. By class: whole classes, as many as fill a batch (DELT). By index: one rank of many classes (SRe2L).

    Raises UserError where a batch cannot hold one class.
    """
    if batch_by == "class":
        if batch_size < ipc:
            raise UserError(f"--batch-size {batch_size} is smaller than one class's {ipc} images; give {ipc} or "
                            "more, or --batch-by index")
        width = batch_size // ipc
        groups = [[(label, rank) for label in range(start, min(start + width, num_classes)) for rank in range(ipc)]
                  for start in range(0, num_classes, width)]
    else:
        groups = [[(label, rank) for label in range(start, min(start + batch_size, num_classes))]
                  for rank in range(ipc) for start in range(0, num_classes, batch_size)]
    return [Unit(number, tuple(members)) for number, members in enumerate(groups)]


class Store:
    """The synthetic set on disk. `names` maps (label, rank) to a path relative to `folder`, `rounds` to a round."""

    def __init__(self, folder: str | Path, settings: dict, names: dict[tuple[int, int], str],
                 rounds: dict[tuple[int, int], int], rank: int, overwrite: bool, *inputs: str):
        """Claim the folder, which all ranks do. Raises UserError if it holds another run, or touches the folders `inputs`."""
        self.folder, self.settings, self.names, self.rounds = Path(folder), settings, names, rounds
        if rank and overwrite:
            self._await_removal()
        claim(self.folder, MANIFEST, settings, overwrite and rank == 0, *inputs)
        self.manifest = read_json(self.folder / MANIFEST)

    def _await_removal(self, seconds: float = 120) -> None:
        """Until rank 0, which alone may, has removed another run."""
        until, path = time.monotonic() + seconds, self.folder / MANIFEST
        while time.monotonic() < until:
            with contextlib.suppress(UserError):
                if read_json(path).get("settings") == self.settings:
                    return
            time.sleep(0.2)

    def record_path(self, unit: Unit) -> Path:
        return self.folder / RECORDS / f"{unit.number:06d}.json"

    def state_path(self, unit: Unit) -> Path:
        return self.folder / RECORDS / f"{unit.number:06d}.state"

    def finished(self, unit: Unit) -> bool:
        """Whether every image of the unit is on disk with the bytes that were written."""
        path = self.record_path(unit)
        known = self._entries(unit, _read_record(path) if path.exists() else self.manifest)
        if known is None and path.exists():
            print(f"{path}: damaged, and not used; unit {unit.number} is done again")
        return known is not None and all((self.folder / name).is_file() and sha256(self.folder / name) == entry["sha256"]
                                         for name, entry in known.items())

    def _entries(self, unit: Unit, record: Any) -> dict[str, dict] | None:
        """What a `record` says of the unit's images by name; None if it does not say everything."""
        with contextlib.suppress(TypeError, KeyError):
            found = {self.names[member]: record["images"][self.names[member]] for member in unit.members}
            if all(isinstance(entry["sha256"], str) and type(entry["round"]) is int for entry in found.values()):
                return found
        return None

    def save(self, unit: Unit, pixels: torch.Tensor, **facts: float) -> None:
        """Write the unit's images, uint8 (N, 3, S, S) in the order of its members, then its record."""
        images = {}
        for member, image in zip(unit.members, pixels):
            name = self.names[member]
            save_image(self.folder / name, image)
            images[name] = {"round": self.rounds[member], "sha256": sha256(self.folder / name)}
        write_json(self.record_path(unit), {"unit": unit.number, "images": images, **facts})

    def complete(self, units: list[Unit], **facts: object) -> bool:
        """Write the manifest if every unit, of whatever rank, is on disk; say whether it is."""
        images: dict[str, dict] = {}
        seconds = 0.0
        for unit in units:
            record = _read_record(self.record_path(unit))
            found = self._entries(unit, record)
            if found is None:
                # Not made yet, or another rank has just folded the records into the manifest.
                if not self.finished(unit):
                    return read_json(self.folder / MANIFEST).get("finished", False)
                found = self._entries(unit, self.manifest)
            images |= found
            seconds += record["seconds"] if record and isinstance(record.get("seconds"), float) else 0
        write_json(self.folder / MANIFEST, {
            "settings": self.settings, "finished": True, **facts,
            "units": len(units), "unit_seconds": round(seconds, 1), "images": dict(sorted(images.items()))})
        shutil.rmtree(self.folder / RECORDS, ignore_errors=True)
        return True
