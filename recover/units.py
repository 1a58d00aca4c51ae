"""Work units: which images are optimised together, and what of them is on disk already."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.files import UserError, claim, read_json, sha256, write_json
from utils.images import save_image

RECORDS = ".units"  # one JSON for each finished unit, folded into the manifest when all are


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
        claim(self.folder, "manifest.json", settings, overwrite and rank == 0, *inputs)
        self.manifest = read_json(self.folder / "manifest.json")

    def _await_removal(self, seconds: float = 120) -> None:
        """Until rank 0, which alone may, has removed another run."""
        until, path = time.monotonic() + seconds, self.folder / "manifest.json"
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
        known = read_json(path)["images"] if path.exists() else self.manifest.get("images", {})
        for member in unit.members:
            entry, file = known.get(self.names[member]), self.folder / self.names[member]
            if entry is None or not file.is_file() or sha256(file) != entry["sha256"]:
                return False
        return True

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
        records = []
        for unit in units:
            path = self.record_path(unit)
            try:
                records.append(read_json(path))
            except UserError:
                # Not made yet, or another rank has just folded the records into the manifest.
                if not self.finished(unit):
                    return read_json(self.folder / "manifest.json").get("finished", False)
                records.append({"images": {self.names[m]: self.manifest["images"][self.names[m]] for m in unit.members}})
        images = {name: entry for record in records for name, entry in record["images"].items()}
        seconds = [record["seconds"] for record in records if "seconds" in record]
        write_json(self.folder / "manifest.json", {
            "settings": self.settings, "finished": True, **facts,
            "units": len(units), "unit_seconds": round(sum(seconds), 1), "images": dict(sorted(images.items()))})
        shutil.rmtree(self.folder / RECORDS, ignore_errors=True)
        return True
