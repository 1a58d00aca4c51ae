"""Soft labels on disk: what the teachers said of every view of every step, so that students need no teacher.

One folder a seed: `index.json`, and shards of safetensors with, for a run of steps, N views and K classes kept:

    order (N,), views (N, 5)    which image, and its crop and flip (validate/augment.py)
    starts (steps + 1,)         where each step's batch begins among the N
    mix (steps, 5)              the CutMix box or MixUp share of each step
    values (N, K) fp16          what the protocol's loss asks for: the K largest probabilities at its temperature, or
                                all logits
    classes (N, K)              whose they are; missing if K is all of them

RandAugment's operations, and what augments batches, are not stored: they are drawn again from the seed, by the same
versions of the libraries.
Published code stores the same facts for one file a batch (FKD, arXiv 2112.01528; SRe2L, section 3.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.data.geometry import Geometry, GeometryFlags, plain
from utils.nets.checkpoints import check_facts
from utils.nets.teacher import unsaid_in
from utils.run import distributed, many_files
from utils.run.device import transfer, versions
from utils.run.errors import UserError
from utils.run.files import differences, read_json, sha256
from utils.run.progress import progress
from validate.augment import squared
from validate.protocols import LATER, SQUARED, said
from validate.stream import Stream
from validate.targets import LOSSES, Labelled, Teachers

INDEX = "index.json"
VIEW_SETTINGS = (
    "epochs",
    "batch_size",
    "loss",
    "temperature",
    "mix",
    "rand_augment",
    "shuffle_patches",
    "min_scale",
    "max_scale",
    "flip",
)
# More of those, in the index where they are not as they were before there was a choice.
LATER_VIEWS = ("tiles", "tile_share", "batch_augment")
# Which images were labelled together; only where that decides the labels.
BATCH_SETTINGS = ("teacher_statistics", "accumulate")


def folder_of(root: str | Path, seed: int) -> Path:
    return Path(root) / f"seed{seed}"


def identity(stream: Stream, **more: object) -> dict[str, Any]:
    """Everything that decides what is shown to the teacher, and `more`."""
    geometry = plain(stream.geometry)
    by_batch = stream.protocol.teacher_statistics == "batch"
    return {
        **{name: value for name, value in said(stream.protocol).items() if name in (*VIEW_SETTINGS, *LATER_VIEWS)},
        **{setting: getattr(stream.protocol, setting) for setting in BATCH_SETTINGS if by_batch},
        **{name: geometry[name] for name in ("input_size", "mean", "std")},
        "seed": stream.seed,
        "images": stream.views.folder.fingerprint(),
        **squared(stream.protocol, stream.views.folder),
        **more,
    }


def library_versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name != "python"}


def _cover(spans: list[range], epochs: int) -> bool:
    """Whether the spans follow one another without a gap, from the first epoch to the last."""
    starts, stops = [span.start for span in spans], [span.stop for span in spans]
    return [*starts, epochs] == [0, *stops] and all(span and span.step == 1 for span in spans)


def _read_index(root: str | Path, seed: int) -> Any:
    path = folder_of(root, seed) / INDEX
    if not path.is_file():
        raise UserError(
            f"--load-labels {root}: no labels for seed {seed} ({path} is missing); make them with --save-labels, "
            "or give other seeds"
        )
    return read_json(path)


class StoredLabels:
    """Stored labels of one seed."""

    def __init__(self, root: str | Path, seed: int, index: Any = None):
        """`index`: what is in its file, if that was read. Raises UserError if they are not there, or not whole."""
        self.seed, self.folder, self._is_whole = seed, folder_of(root, seed), False
        path = self.folder / INDEX
        self.index = _read_index(root, seed) if index is None else index
        if isinstance(self.index, dict) and self.index.get("finished") is False:
            raise UserError(f"{self.folder}: its labels are not complete; run the command with --save-labels again")
        try:
            settings = self.index["settings"]
            self.kept: int = settings["kept"]
            self.shards: list[tuple[str, range, str]] = [
                (Path(shard["file"]).name, range(*shard["epochs"]), shard["sha256"]) for shard in self.index["shards"]
            ]
            facts = {name: self.index[name] for name in ("stem", "num_classes", "classes")}
            facts |= {name: settings[name] for name in ("input_size", "mean", "std")}
            check_facts(path, facts)
            if not _cover([epochs for _, epochs, _ in self.shards], settings["epochs"]):
                raise ValueError
            if None in facts.values() or type(self.kept) is not int or not isinstance(self.index["versions"], dict):
                raise TypeError
            self.geometry = Geometry(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
            names, digests = (tuple(map(str, found)) for found in (self.index["archs"], settings["teachers"]))
            dataset = self.index.get("dataset")  # earlier versions did not say it
            self.teachers = Teachers(
                self.geometry,
                names,
                digests,
                dataset=dataset if isinstance(dataset, str) else None,
                unsaid=unsaid_in(settings),
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: is not an index of labels; make them anew with --save-labels") from None

    @classmethod
    def of_all_ranks(cls, root: str | Path, seed: int) -> "StoredLabels":
        """The labels whose index rank 0 reads, for all."""
        return cls(root, seed, distributed.by_main(lambda: _read_index(root, seed)))

    def check_flags(self, given: GeometryFlags) -> None:
        """Raises UserError if a given flag says otherwise than the labels."""
        for name in ("input_size", "mean", "std"):
            value, stored = getattr(given, name), getattr(self.geometry, name)
            if value is not None and value != stored:
                raise UserError(f"{self.folder}: its {name} is {stored}, not {value}; leave out the flag")

    def check(self, stream: Stream) -> None:
        """Raises UserError if the labels are not of this stream's images and views."""
        later = {name: LATER[name] for name in LATER_VIEWS}
        wanted = {**later, **identity(stream)}
        found = {name: self.index["settings"].get(name, later.get(name)) for name in wanted}
        found |= {name: self.index["settings"][name] for name in BATCH_SETTINGS if name in self.index["settings"]}
        if found != wanted:
            raise UserError(
                f"{self.folder}: its labels are for another run ({differences(found, wanted)}); give the images and "
                "flags that they were made with"
            )
        self.check_versions(stream)

    def require_whole(self) -> None:
        """Raises UserError, the same on all ranks, if a shard is missing or damaged.

        Each is read once in a process, and of ranks that work together each reads a part.
        """
        if self._is_whole:
            return
        own = slice(distributed.get_rank(), None, distributed.get_world_size())
        if damaged := sum(distributed.all_gather(self.damaged(own)), []):
            raise UserError(f"{min(damaged)}: missing or damaged; run the command with --save-labels again")
        self._is_whole = True

    def check_versions(self, stream: Stream) -> None:
        """Raises UserError if libraries of other versions drew what is not stored: they may draw it otherwise."""
        here = library_versions()
        stored = {name: self.index["versions"].get(name) for name in here}
        if stored != here and not stream.views.augmentation.is_recorded:
            raise UserError(
                f"{self.folder}: other library versions drew its views ({differences(stored, here)}), and these may "
                "draw others; install those, or make the labels anew with --save-labels and another folder"
            )

    def are_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether a result of these settings is of students of such labels, as far as both say it."""
        defaults = {**{name: LATER[name] for name in (*LATER_VIEWS, *BATCH_SETTINGS)}, SQUARED: None}
        own = {**defaults, **self.index["settings"]}
        other = {**defaults, **settings, "kept": settings.get("stored_labels"), "seed": self.seed}
        unsaid = {"precision"} if own["teacher_statistics"] == "batch" else {"precision", "accumulate"}
        return all(own[name] == other[name] for name in own.keys() & other.keys() - unsaid)

    def damaged(self, own: slice = slice(None)) -> list[Path]:
        """The shards, of all or of its `own`, that are missing or not as they were written."""
        shards = self.shards[own]
        there = [file for file, *_ in shards if (self.folder / file).is_file()]
        found = {}
        title = f"checking labels of seed {self.seed}"
        with progress(total=len(there), desc=title, unit="shard", leave=False, delay=2) as bar:
            for name, [digest] in zip(there, many_files.each(lambda name: sha256(self.folder / name), there)):
                found[name] = digest
                bar.update(1)
        return [self.folder / file for file, _, digest in shards if found.get(file) != digest]

    def labelled(self, stream: Stream, start: int = 0) -> Labelled:
        """All batches from `start` on, shown as they were to the teachers, with the targets (B, classes), fp32.

        A rank makes the whole batch, because images were mixed with their neighbours, and takes its part of it.
        """
        for step, (values, classes) in stream.replay(self._recorded(stream, start)):
            values = values.float()
            if LOSSES[stream.protocol.loss].target == "probabilities":
                values = complete_probabilities(values, classes, stream.geometry.num_classes)
            own = distributed.local_batch(range(len(values)))
            yield step.subset(own), transfer(values[own], stream.runtime.device)

    def _recorded(self, stream: Stream, start: int) -> Iterator[tuple[tuple, torch.Tensor, tuple]]:
        """The key, the mix, and the values and classes of each batch from `start` on.

        A shard is opened when the first batch of it is asked for.
        """
        for file, epochs, _ in self.shards:
            steps = len(epochs) * stream.schedule.steps_per_epoch
            if start >= steps:  # all of this shard was seen
                start -= steps
                continue
            tensors = _opened(self.folder / file)
            starts = tensors["starts"].long().tolist()
            order, views = tensors["order"].long(), tensors["views"].long()
            spans = [slice(*span) for span in zip(starts, starts[1:])][start:]
            for (name, _), span, mix in zip(stream.keys(epochs, start), spans, tensors["mix"][start:]):
                classes = tensors["classes"][span].long() if "classes" in tensors else None
                yield (name, order[span].tolist(), views[span].tolist()), mix, (tensors["values"][span], classes)
            start = 0


def _opened(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def complete_probabilities(values: torch.Tensor, classes: torch.Tensor | None, num_classes: int) -> torch.Tensor:
    """(N, K) probabilities of `classes` -> (N, num_classes), each row of sum 1: the others share the rest evenly.

    But for the rounding of stored values that sum to more than 1.
    """
    if classes is None:
        return values / values.sum(1, keepdim=True)
    rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / (num_classes - values.shape[1])
    return rest.expand(-1, num_classes).scatter(1, classes, values)


def other_precision(stored: Iterable[StoredLabels], precision: str) -> str | None:
    """In which the teachers of stored labels that are alike computed; None where that is the students' `precision`."""
    found = next((labels.index["settings"].get("precision") for labels in stored), None)
    return found if found != precision else None


def require_alike(stored: Sequence[StoredLabels]) -> None:
    """Raises UserError where labels of several seeds are not the same teachers', of the same images and views."""
    for labels in stored[1:]:
        first = stored[0]
        one, other = ({**found.index["settings"], "seed": None} for found in (first, labels))
        if one != other:
            raise UserError(
                f"{labels.folder}: its labels are not made as those of {first.folder} ({differences(one, other)}), and "
                "their students would be averaged: make one of them anew with --save-labels and --overwrite"
            )
