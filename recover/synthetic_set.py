"""The synthetic set on disk: images, the records of the units that are done, and in the end the manifest."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Iterator

import torch

from recover.units import Member, Unit
from utils.data.images import save_image
from utils.data.manifest import MANIFEST, Manifest, seconds
from utils.run.distributed import rank_from_environment
from utils.run.errors import UserError
from utils.run.files import flush, sha256, write_json
from utils.run.outputs import claim
from utils.run.resume import State
from utils.run.shared_work import SharedWork
from utils.run.signals import SIGNALS

RECORDS = ".units"  # in the folder: the units that are done or in progress


class SyntheticSet:
    """The set in `folder`, of the run that `settings` identify. `names` maps each image to its path in the folder."""

    def __init__(self, folder: str | Path, settings: dict, units: list[Unit], names: dict[Member, str]):
        self.folder, self.settings, self.units, self.names = Path(folder), settings, units, names
        self.rank, self.world_size = rank_from_environment()
        self.work = SharedWork(self.folder / RECORDS, settings, len(units), self._is_done)
        self.manifest = Manifest()

    def claim(self, overwrite: bool, *inputs: str) -> None:
        """Make the folder this run's, as all processes do.

        Raises UserError if it holds another run, or touches one of the folders `inputs`.
        """
        if self.rank and overwrite:
            self._await_removal()
        claim(self.folder, MANIFEST, self.settings, overwrite and self.rank == 0, *inputs)
        self.manifest = Manifest.of(self.folder)

    def _await_removal(self, seconds: float = 120) -> None:
        """Until rank 0, which alone may, has removed another run."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(UserError):
                if Manifest.of(self.folder).settings == self.settings:
                    return
            time.sleep(0.2)

    @property
    def seconds(self) -> float:
        """That all units took, in all processes; once the set is complete."""
        return Manifest.of(self.folder).seconds

    @property
    def finished(self) -> bool:
        return self.manifest.is_finished

    def missing(self) -> list[Unit]:
        """The units that are not done, whoever may be at work on them."""
        return [self.units[number] for number in self.work.missing()]

    def take(self) -> Iterator[Unit]:
        """The units that are left for this process, each chosen when it is asked for."""
        with self.work:
            for number in self.work.take():
                yield self.units[number]

    def state(self, unit: Unit, minutes: float) -> State:
        """Where a unit in progress is saved, every so many minutes."""
        path = self.folder / RECORDS / f"{unit.number:06d}.state"
        return State(path, {**self.settings, "unit": unit.number}, minutes)

    def save(self, unit: Unit, pixels: torch.Tensor, facts: list[dict[str, Any]], seconds: float) -> None:
        """Write the unit's images, uint8 (N, 3, S, S), then its record; `facts` of each image go into the manifest.

        No signal cuts this off, and what is recorded is on disk.
        """
        images = {}
        with SIGNALS.held():
            for member, image, known in zip(unit.members, pixels, facts):
                name = self.names[member]
                save_image(self.folder / name, image)
                images[name] = {**known, "sha256": sha256(self.folder / name)}
            flush(self.folder / name for name in images)
            # With those of an earlier time: a finished set may have lost the unit's images.
            seconds = round(self._seconds_before(unit) + seconds, 2)
            self.work.save(unit.number, {"images": images, "seconds": seconds})

    def _seconds_before(self, unit: Unit) -> float:
        """That the finished set says the unit took; of a set of an earlier version its share of all."""
        found = self.manifest.content.get("unit_seconds")
        if isinstance(found, list) and len(found) == len(self.units):
            return seconds({"seconds": found[unit.number]})
        return self.manifest.seconds / len(self.units)

    def complete(self, **facts: object) -> bool:
        """Write the manifest, with `facts`, if every unit is done, by whatever process; say whether it is.

        Seconds are summed over all units, processes and interruptions. A manifest that says all this already stays.
        """
        images: dict[str, dict] = {}
        seconds: list[float] = []
        for unit in self.units:
            record = self.work.record(unit.number)
            found = self._entries(unit, record)
            if found is None:
                found = self._entries(unit, self.manifest.content)
                if found is None:  # not done, or another process has put everything together
                    return Manifest.of(self.folder).is_finished
                seconds.append(self._seconds_before(unit))
            else:
                seconds.append(float(record.get("seconds") or 0))
            images |= found
        known = [self._seconds_before(unit) for unit in self.units]
        if not self.finished or (images, seconds) != (self.manifest.images, known):
            content = {**facts, "seconds": round(sum(seconds), 1), "units": len(self.units), "unit_seconds": seconds}
            images = dict(sorted(images.items()))
            write_json(
                self.folder / MANIFEST, {"settings": self.settings, "finished": True, **content, "images": images}
            )
        self.work.remove()
        return True

    def _is_done(self, number: int) -> bool:
        """Whether every image of the unit is on disk. Of several processes each compares the bytes of a part."""
        unit = self.units[number]
        record = self.work.record(number)
        if record is None and not self.finished:  # another process may have put everything together since
            self.manifest = Manifest.of(self.folder)
        entries = self._entries(unit, self.manifest.content if record is None else record)
        if entries is None:
            return False
        compare = number % self.world_size == self.rank
        return all(
            (path := self.folder / name).is_file() and (not compare or sha256(path) == entry["sha256"])
            for name, entry in entries.items()
        )

    def _entries(self, unit: Unit, record: Any) -> dict[str, dict] | None:
        """What a record or manifest says of the unit's images, by name; None if it does not say everything."""
        with contextlib.suppress(TypeError, KeyError):
            found = {self.names[member]: record["images"][self.names[member]] for member in unit.members}
            if all(isinstance(entry["sha256"], str) for entry in found.values()):
                return found
        return None
