"""Scores: how sure the teacher is of each real image; the ranking file that holds them."""

from __future__ import annotations

import csv
import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import nn

from ranking import record
from ranking.crops import BOX, Offered
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.images import resize_for_test
from utils.data.loader import EvalBatches, Resize
from utils.nets.class_order import Answers
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.errors import UserError, first_line
from utils.run.files import replacing
from utils.run.memory import ask
from utils.run.progress import progress
from utils.run.shared_work import SharedWork
from utils.run.stopwatch import Stopwatch

COLUMNS = ["img_path", "class", "score"]
PIECE = 4  # batches: what a kill can cost at most


@dataclass(frozen=True)
class Scorer:
    """Scores the images of a folder by a frozen network on the device."""

    network: nn.Module
    geometry: Geometry
    runtime: Runtime
    batch_size: int
    workers: int | None
    may_split: bool = False  # batches that do not fit into memory
    clock: Stopwatch = field(default_factory=Stopwatch)  # started with the work
    resize: Resize = resize_for_test

    @torch.inference_mode()
    def score(
        self,
        images: Offered,
        parts: Path,
        identity: dict,
        is_complete: Callable[[], bool] = lambda: False,
        judge: Callable[[Answers], None] = lambda answers: None,
    ) -> pd.DataFrame | None:
        """softmax(teacher(image))[true class] of every image in the test geometry (DELT, section 3.2).

        Columns COLUMNS, and BOX where they are crops, one row an image or crop, sorted by class, then by score,
        highest first; equal scores by path, and of an image's crops by number. The work is shared with other processes
        by the folder `parts`; None while they are at work on the rest of it, or where `is_complete` says that they have
        put everything together. `judge` gets what the network says of all images, and may raise. The table's
        `attrs["seconds"]` are those of all processes that scored. Raises UserError where a score is not a number.
        """
        batches = EvalBatches(images, self.geometry.input_size, self.batch_size, self.workers, self.resize)
        network = self.runtime.compiled(self.network, len(batches))

        def is_done(piece: int) -> bool:
            return work.record(piece) is not None or is_complete()

        with SharedWork(parts, identity, math.ceil(len(batches) / PIECE), is_done) as work:
            pending: deque[range] = deque()  # the batches of each piece; workers read ahead

            def numbers() -> Iterator[int]:
                for piece in work.take():
                    pending.append(range(len(batches))[piece * PIECE : (piece + 1) * PIECE])
                    yield from pending[-1]

            total = len(work.missing()) * PIECE * self.batch_size // distributed.rank_from_environment()[1]
            # Scores and answers of the piece in progress, on the device: what is fetched is waited for.
            found: list[tuple[torch.Tensor, torch.Tensor]] = []
            with progress(total=min(total, len(images)), desc="ranking", unit="img") as bar:
                for pixels, labels in batches.read(numbers()):
                    found.append(self._scores(network, pixels, labels))
                    bar.update(len(pixels))
                    if len(found) == len(pending[0]):
                        first = pending.popleft().start
                        scores, predicted = (torch.cat(part).cpu() for part in zip(*found))
                        start = first * self.batch_size
                        paths = [images.root / path for path in images.paths[start : start + len(scores)]]
                        self.runtime.require_numbers(scores, "score", paths)
                        piece = {"scores": scores.double().tolist(), "predicted": predicted.tolist()}
                        work.save(first // PIECE, {**piece, "seconds": self.clock.lap()})
                        found = []
            records = work.records()
        if records is None:
            return None
        if all("predicted" in entry for entry in records):  # earlier versions kept none
            predicted = torch.tensor([label for entry in records for label in entry["predicted"]])
            judge(Answers.of(torch.tensor(images.labels), predicted, self.geometry.num_classes))
        return _sorted_rows(images, records)

    def _scores(
        self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The score of each image, and the class that the network takes it for, on the device."""
        logits = ask(network, images, self.geometry, self.runtime, self.may_split).float()
        return logits.softmax(1).gather(1, transfer(labels, self.runtime.device)[:, None])[:, 0], logits.argmax(1)


def _sorted_rows(images: Offered, records: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of `Scorer.score`, by what was saved of all pieces."""
    table = rows_of(images).assign(score=np.concatenate([entry["scores"] for entry in records]))
    table["number"] = np.arange(len(table))
    order = ["class", "score", "img_path", "number"]
    table = table.sort_values(order, ascending=[True, False, True, True], ignore_index=True).drop(columns="number")
    table.attrs["seconds"] = sum(entry.get("seconds", 0.0) for entry in records)
    return table


def rows_of(images: Offered) -> pd.DataFrame:
    """A row for each image or crop in their order, with a score of 0."""
    columns: dict[str, list] = {
        "img_path": list(images.paths),
        "class": [images.classes[label] for label in images.labels],
        "score": [0.0] * len(images),
    }
    boxes = [tile.box for label in range(len(images.classes)) for tile in images.tiles(label)]
    if boxes[0]:
        columns |= dict(zip(BOX, map(list, zip(*boxes))))
    return pd.DataFrame(columns)


def write(table: pd.DataFrame, path: str | Path, about: dict[str, Any] | None = None) -> None:
    """The ranking file, and `about` it in its record, which is there before it is."""
    with replacing(path) as temporary:
        # Nine digits give a float32 back exactly.
        table.to_csv(temporary, index=False, float_format="%.9g", quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
        if about is not None:
            record.write(temporary, path, about)


def read(path: str | Path, folder: ImageFolder, of_crops: bool = False) -> pd.DataFrame:
    """A ranking file of the images in `folder`, or of crops of them.

    Raises UserError if it is no CSV, lacks a column, has a score or a place that is no number, or names an image or a
    class that the folder does not hold.
    """
    table = _table(path)
    if (BOX[0] in table.columns) != of_crops:
        own, other = ("crops", "whole images") if BOX[0] in table.columns else ("whole images", "crops")
        raise UserError(
            f"--ranking-file {path}: has the scores of {own}, and {other} are asked for; give another file, or "
            f"{'leave out --crops' if of_crops else 'the --crops that it was made with'}"
        )
    numbers = pd.to_numeric(table["score"], errors="coerce")
    if (bad := ~np.isfinite(numbers.to_numpy(float))).any():
        row = int(bad.argmax())
        raise UserError(f"--ranking-file {path}: line {row + 2}: score '{table['score'].iloc[row]}' is not a number")
    _require_images(path, table, folder)
    if of_crops:
        return table.assign(score=numbers, **_boxes(path, table))[[*COLUMNS, *BOX]]
    if table["img_path"].duplicated().any():
        raise UserError(
            f"--ranking-file {path}: names {table['img_path'][table['img_path'].duplicated()].iloc[0]} twice"
        )
    return table.assign(score=numbers)[COLUMNS]


def _table(path: str | Path) -> pd.DataFrame:
    """What a ranking file holds. Raises UserError if it is no CSV, or lacks one of COLUMNS."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows longer than the header: they name no image of the folder
            table = pd.read_csv(
                path, dtype={"img_path": str, "class": str}, keep_default_na=False, encoding="utf-8", index_col=False
            )
    except (OSError, ValueError) as error:
        raise UserError(f"--ranking-file {path}: not a readable CSV ({first_line(error)})") from None
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UserError(
            f"--ranking-file {path}: lacks the column {', '.join(missing)} (it has "
            f"{', '.join(map(str, table.columns))}); needed: {', '.join(COLUMNS)}"
        )
    return table


def _require_images(path: str | Path, table: pd.DataFrame, folder: ImageFolder) -> None:
    """Raises UserError where the table names an image or a class that the folder does not hold."""
    owner = {image: folder.classes[label] for image, label in zip(folder.paths, folder.labels)}
    for line, (image, name) in enumerate(zip(table["img_path"], table["class"]), start=2):
        if image not in owner:
            raise UserError(
                f"--ranking-file {path}: line {line} names {image}, which is not in {folder.role} "
                f"{folder.root}; give the folder it was made from, or remove the file to score anew"
            )
        if owner[image] != name:
            raise UserError(
                f"--ranking-file {path}: line {line} gives {image} the class '{name}', but it lies in "
                f"the folder of '{owner[image]}'"
            )


def _boxes(path: str | Path, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """The places of crops. Raises UserError where one is none."""
    if missing := [name for name in BOX if name not in table.columns]:
        raise UserError(f"--ranking-file {path}: lacks the column {', '.join(missing)} of its crops")
    found = {}
    for name, least in zip(BOX, (0, 0, 1, 1)):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        if (bad := ~((values >= least) & (values == values.round()) & (values < 2**31))).any():
            row = int(bad.argmax())
            raise UserError(
                f"--ranking-file {path}: line {row + 2}: {name} '{table[name].iloc[row]}' is not a whole number of "
                f"{least} or more"
            )
        found[name] = values.astype(int)
    return found
