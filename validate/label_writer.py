"""Stores soft labels: what the teachers say of every view of every step (the files: validate/labels.py)."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import torch
from safetensors.torch import save as serialised
from tqdm import tqdm

from utils.data.geometry import plain
from utils.data.loader import own_memory
from utils.nets.teacher import beside
from utils.run import distributed
from utils.run.device import versions
from utils.run.errors import UserError
from utils.run.files import read_json, sha256, write_bytes, write_json
from utils.run.outputs import claim, locked
from utils.run.progress import progress
from utils.run.shared_work import SharedWork
from validate.labels import INDEX, StoredLabels, folder_of, identity, library_versions
from validate.stream import Step, Stream
from validate.targets import Teachers

SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class Writer:
    """Stores what `teachers` say: of each view the `top_k` largest probabilities, or all that the loss asks for."""

    root: str
    teachers: Teachers
    top_k: int | None
    overwrite: bool

    def save(self, stream: Stream, learns: bool = True) -> None:
        """Label every step of `stream`. Shards that are there already stay; ranks share the others.

        `learns`: a student is to learn from them. Raises UserError if the folder holds other labels, or views that
        other library versions drew and that are drawn again.
        """
        folder, num_classes = folder_of(self.root, stream.seed), stream.geometry.num_classes
        kept = min(self.top_k or num_classes, num_classes)
        teachers = list(self.teachers.digests)
        settings = identity(stream, teachers=teachers, kept=kept, precision=stream.runtime.precision)
        settings |= beside(settings, self.teachers.unsaid)
        with locked(folder):
            images, epochs = len(stream.views.folder), stream.protocol.epochs
            width = max(1, min(epochs, SHARD_BYTES // (images * (8 + 4 * kept))))
            spans = [range(start, min(start + width, epochs)) for start in range(0, epochs, width)]
            makers = {**settings, "versions": library_versions()}
            work = SharedWork(folder / ".shards", makers, len(spans), lambda number: _is_whole(folder, work, number))

            def are_whole() -> bool:
                if claim(folder, INDEX, settings, self.overwrite).get("finished"):
                    self._reopen(folder, stream, work, spans, learns)
                return bool(read_json(folder / INDEX).get("finished"))

            distributed.require_same("settings of the labels", makers)
            if not distributed.by_main(are_whole):
                self._save_shards(folder, stream, work, spans, kept)
                distributed.barrier()
                if distributed.get_rank() == 0:
                    self._finish(folder, stream, work, settings)
            if distributed.get_rank() == 0:
                work.remove()
            distributed.barrier()

    def _reopen(self, folder: Path, stream: Stream, work: SharedWork, spans: list[range], learns: bool) -> None:
        """Where shards of finished labels are lost or damaged, see that these alone are made again."""
        stored = StoredLabels(self.root, stream.seed)
        damaged = stored.damaged()
        if learns or damaged:
            stored.check_versions(stream)
        if damaged:
            for number, (span, (file, epochs, digest)) in enumerate(zip(spans, stored.shards)):
                if epochs == span:  # whether the file is whole is looked at before it is made again
                    work.save(number, {"file": file, "epochs": [span.start, span.stop], "sha256": digest})
            write_json(folder / INDEX, {"settings": stored.index["settings"], "finished": False})

    def _save_shards(self, folder: Path, stream: Stream, work: SharedWork, spans: list[range], kept: int) -> None:
        label = _largest(self.teachers.labeller(stream), kept, stream.geometry.num_classes)
        images = sum(len(spans[number]) for number in work.missing()) * len(stream.views.folder)
        total = images // distributed.get_world_size()
        taken: deque[int] = deque()  # the next shard before one is done: workers read ahead

        def keys() -> Iterator[tuple]:
            for number in work.take():
                taken.append(number)
                yield from stream.keys(spans[number])

        with progress(total=total, desc=f"soft labels seed {stream.seed}", unit="img") as bar, work:
            steps = stream.drawn(keys(), local=False)
            for first in steps:
                number = taken.popleft()
                path, span = folder / f"{number:05d}.safetensors", spans[number]
                others = islice(steps, len(span) * stream.schedule.steps_per_epoch - 1)
                _save_shard(path, chain([first], others), label, bar)
                work.save(number, {"file": path.name, "epochs": [span.start, span.stop], "sha256": sha256(path)})

    def _finish(self, folder: Path, stream: Stream, work: SharedWork, settings: dict[str, Any]) -> None:
        """Put the records of all shards into the index."""
        shards = _when_seen(work, folder)
        size = sum((folder / shard["file"]).stat().st_size for shard in shards)
        geometry = plain(self.teachers.geometry)
        facts = {name: geometry[name] for name in ("stem", "num_classes")}
        facts |= {"archs": list(self.teachers.archs), "classes": stream.views.folder.classes, "versions": versions()}
        facts["dataset"] = self.teachers.dataset
        index = {"settings": settings, "finished": True, "bytes": size, **facts, "shards": shards}
        write_json(folder / INDEX, index)
        views = stream.protocol.epochs * len(stream.views.folder)
        print(
            f"validate: soft labels in {folder}: {size:,} bytes, {size / views:.1f} a view, {settings['kept']} of "
            f"{stream.geometry.num_classes} classes kept"
        )


def _when_seen(work: SharedWork, folder: Path, seconds: float = 120) -> list[dict[str, Any]]:
    """The records of all shards, once a network's file system shows those of other ranks here."""
    until = time.monotonic() + seconds
    while (found := work.records()) is None:
        if time.monotonic() > until:
            raise UserError(
                f"{folder}: what other processes stored there is not to be seen from {os.uname().nodename}; give a "
                "folder on a file system that all machines share, and run the same command again"
            )
        distributed.keep_alive()
        time.sleep(0.5)
    return found


def _is_whole(folder: Path, work: SharedWork, number: int) -> bool:
    record = work.record(number)
    return bool(record) and (path := folder / record["file"]).is_file() and sha256(path) == record["sha256"]


def _largest(label: Callable, kept: int, num_classes: int) -> Callable:
    """images -> (values (B, kept), whose they are; None for all classes)."""

    def found(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        target = label(images)
        return tuple(target.topk(kept)) if kept < num_classes else (target, None)

    return found


def _save_shard(path: Path, steps: Iterable[Step], label: Callable, bar: tqdm) -> None:
    orders, views, sizes, mixes, values, classes = [], [], [], [], [], []
    for step in steps:
        found, indices = label(step.images)
        # On the device until all are there: what is fetched is waited for.
        if indices is not None:
            classes.append(indices.int())
        values.append(found.half())
        orders.append(own_memory(step.order))
        views.append(own_memory(step.views))
        sizes.append(len(step.images))
        mixes.append(step.mix)
        bar.update(len(step.images))
    starts = torch.tensor([0, *sizes]).cumsum(0)
    tensors = {"order": torch.cat(orders), "views": torch.cat(views), "starts": starts}
    tensors |= {"classes": torch.cat(classes).cpu()} if classes else {}
    tensors = {name: _narrow(tensor) for name, tensor in tensors.items()}
    tensors |= {"mix": torch.stack(mixes), "values": torch.cat(values).cpu()}
    write_bytes(path, serialised(tensors))


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers of 0 and more in the narrowest type that holds them."""
    most = int(values.max())
    return values.to(torch.uint8 if most < 2**8 else torch.int16 if most < 2**15 else torch.int32).contiguous()
