"""Soft labels on disk: what the teacher said of every view of every step, so that students need no teacher.

One folder a seed: `index.json`, and shards of safetensors with, for a run of steps, N views and K classes kept:

    order (N,), views (N, 5)    which image, and its crop and flip (validate/augment.py)
    starts (steps + 1,)         where each step's batch begins among the N
    mix (steps, 5)              the CutMix box or MixUp share of each step
    values (N, K) fp16          the K largest probabilities at the protocol's temperature
    classes (N, K)              whose they are; missing if K is all of them

Published code stores the same facts for one file a batch (FKD, arXiv 2112.01528; SRe2L, section 3.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save as serialised
from torch import nn
from tqdm import tqdm

from utils import ranks
from utils.checkpoints import Teacher, check_facts
from utils.files import UserError, claim, differences, read_json, replacing, sha256, write_json
from utils.images import progress
from validate.train import Step, Stream, teacher_labels

SHARD_BYTES = 64 << 20
GEOMETRY = ("input_size", "mean", "std")
VIEW_FLAGS = ("epochs", "batch_size", "temperature", "mix", "rand_augment", "shuffle_patches", "min_scale", "max_scale",
              "flip")


def folder_of(root: str | Path, seed: int) -> Path:
    return Path(root) / f"seed{seed}"


def identity(stream: Stream, **more: object) -> dict:
    """Everything that decides what is shown to the teacher, and `more`."""
    return {**{flag: getattr(stream.protocol, flag) for flag in VIEW_FLAGS}, "seed": stream.seed,
            "images": stream.views.folder.fingerprint(), "mean": list(stream.mean), "std": list(stream.std),
            "input_size": stream.views.augmentation.size, **more}


def save(root: str | Path, stream: Stream, teacher: nn.Module, facts: Teacher, top_k: int | None, overwrite: bool) -> None:
    """Let `teacher` label every step of `stream`; shards that are there already stay. Ranks have every world-size-th shard.

    Raises UserError if the folder holds other labels.
    """
    folder, kept = folder_of(root, stream.seed), min(top_k or stream.num_classes, stream.num_classes)
    settings = identity(stream, teacher=facts.sha256, kept=kept, precision=stream.runtime.precision)
    if ranks.rank() == 0:
        claim(folder, "index.json", settings, overwrite)
    ranks.wait()
    if read_json(folder / "index.json").get("finished"):
        return
    images, epochs = len(stream.views.folder), stream.protocol.epochs
    width = max(1, min(epochs, SHARD_BYTES // (images * (8 + 4 * kept))))
    label = teacher_labels(teacher, stream)
    spans = [range(start, min(start + width, epochs)) for start in range(0, epochs, width)]
    notes = [folder / f"{number:05d}.json" for number in range(len(spans))]
    own = list(zip(spans, notes))[ranks.rank()::ranks.world()]
    with progress(total=sum(len(span) for span, _ in own) * images, desc=f"soft labels seed {stream.seed}", unit="img") as bar:
        for span, note in own:
            path = note.with_suffix(".safetensors")
            if not (note.exists() and path.exists() and read_json(note)["sha256"] == sha256(path)):
                _save_shard(path, stream, span, label, kept, bar)
                write_json(note, {"file": path.name, "epochs": [span.start, span.stop], "sha256": sha256(path)})
    ranks.wait()
    if ranks.rank() == 0:
        _finish(folder, notes, settings, stream, facts, epochs * images)
    ranks.wait()


def _finish(folder: Path, notes: list[Path], settings: dict, stream: Stream, facts: Teacher, views: int) -> None:
    """Fold the notes of all shards into the index."""
    shards = [read_json(note) for note in notes]
    size = sum((folder / shard["file"]).stat().st_size for shard in shards)
    names = {name: getattr(facts, name) for name in ("arch", "stem", "num_classes")}
    write_json(folder / "index.json", {"settings": settings, "finished": True, "bytes": size, **names,
                                       "classes": stream.views.folder.classes, "shards": shards})
    for note in notes:
        note.unlink()
    print(f"validate: soft labels in {folder}: {size:,} bytes, {size / views:.1f} a view, "
          f"{settings['kept']} of {stream.num_classes} classes kept")


def _save_shard(path: Path, stream: Stream, epochs: range, label: Callable, kept: int, bar: tqdm) -> None:
    orders, views, sizes, mixes, values, classes = [], [], [], [], [], []
    for step in stream.draw(epochs, shared=False):
        probabilities = label(step.images)
        if kept < stream.num_classes:
            probabilities, indices = probabilities.topk(kept)
            classes.append(indices.cpu())
        values.append(probabilities.half().cpu())
        orders.append(step.order)
        views.append(step.views)
        sizes.append(len(step.images))
        mixes.append(step.mix)
        bar.update(len(step.images))
    starts = torch.tensor([0, *sizes]).cumsum(0)
    tensors = {"order": torch.cat(orders), "views": torch.cat(views), "starts": starts}
    tensors |= {"classes": torch.cat(classes)} if classes else {}
    tensors = {name: _narrow(tensor) for name, tensor in tensors.items()}
    tensors |= {"mix": torch.stack(mixes), "values": torch.cat(values)}
    with replacing(path) as temporary:
        temporary.write_bytes(serialised(tensors))


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """Whole numbers of 0 and more in the narrowest type that holds them."""
    most = int(values.max())
    return values.to(torch.uint8 if most < 2**8 else torch.int16 if most < 2**15 else torch.int32).contiguous()


class Labels:
    """Stored labels of one seed."""

    def __init__(self, root: str | Path, seed: int):
        """Raises UserError if they are not there, or not whole."""
        self.folder = folder_of(root, seed)
        if not (self.folder / "index.json").is_file():
            raise UserError(f"--load-labels {root}: no labels for seed {seed} ({self.folder / 'index.json'} is missing); "
                            "make them with --save-labels, or give other seeds")
        self.index = read_json(self.folder / "index.json")
        if isinstance(self.index, dict) and self.index.get("finished") is False:
            raise UserError(f"{self.folder}: its labels are not complete; run the command with --save-labels again")
        try:
            settings = self.index["settings"]
            self.kept: int = settings["kept"]
            self.shards: list[tuple[str, range, str]] = [
                (Path(shard["file"]).name, range(*shard["epochs"]), shard["sha256"]) for shard in self.index["shards"]]
            self.said = {name: self.index[name] for name in ("arch", "stem", "num_classes", "classes")}
            check_facts(self.folder / "index.json", {**self.said, **{name: settings[name] for name in GEOMETRY}})
            if None in [*self.said.values(), settings["teacher"]] or type(self.kept) is not int:
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self.folder / 'index.json'}: is no index of labels; make them anew with --save-labels") from None

    def facts(self, input_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> Teacher:
        """What the index says of the teacher, without its network. Raises UserError if a given flag says otherwise."""
        settings = self.index["settings"]
        for name, given in zip(GEOMETRY, (input_size, mean, std)):
            if given is not None and given != settings[name]:
                raise UserError(f"{self.folder}: its {name} is {settings[name]}, not {given}; leave out the flag")
        return Teacher(model=None, assumed=[], sha256=settings["teacher"], input_size=settings["input_size"],
                       mean=tuple(settings["mean"]), std=tuple(settings["std"]), **self.said)

    def check(self, stream: Stream) -> None:
        """Raises UserError if the labels are not of this stream's images and views, or a shard is damaged."""
        wanted = identity(stream)
        found = {name: self.index["settings"].get(name) for name in wanted}
        if found != wanted:
            raise UserError(f"{self.folder}: its labels are for another run ({differences(found, wanted)}); give the "
                            "images and flags that they were made with")
        for file, _, sha in self.shards:
            path = self.folder / file
            if not path.is_file() or sha256(path) != sha:
                raise UserError(f"{path}: missing or damaged; run the command with --save-labels again")

    def labelled(self, stream: Stream, start: int = 0) -> Iterator[tuple[Step, torch.Tensor]]:
        """All batches from `start` on, shown as they were to the teacher, with its probabilities (B, classes), fp32.

        A rank makes the whole batch, because images were mixed with their neighbours, and takes its share of it.
        """
        for file, epochs, _ in self.shards:
            first, start = start, max(start - len(epochs) * stream.passes.steps, 0)
            if start:
                continue  # all of this shard was seen
            try:
                tensors = load_file(self.folder / file)
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.folder / file}: cannot be read ({error})") from None
            starts = tensors["starts"].long().tolist()
            order, views = tensors["order"].long(), tensors["views"].long()
            spans = [slice(*span) for span in zip(starts, starts[1:])][first:]
            keys = ((name, order[span].tolist(), views[span].tolist())
                    for (name, _), span in zip(stream.keys(epochs, first), spans))
            steps = stream.replay(keys, tensors["mix"][first:])
            for step, span in zip(steps, spans):
                kept = tensors["classes"][span].long() if "classes" in tensors else None
                target = spread(tensors["values"][span].float(), kept, stream.num_classes)
                yield step.of(own := ranks.share(range(len(target)))), target[own].to(stream.runtime.device, non_blocking=True)


def spread(values: torch.Tensor, classes: torch.Tensor | None, num_classes: int) -> torch.Tensor:
    """(N, K) probabilities of `classes` -> (N, num_classes), each row of sum 1: what is missing goes to the others evenly."""
    if classes is None:
        return values / values.sum(1, keepdim=True)
    rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / (num_classes - values.shape[1])
    return rest.expand(-1, num_classes).scatter(1, classes, values)
