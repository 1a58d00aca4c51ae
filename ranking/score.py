"""Scores: how sure the teacher is of each real image."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd
import torch

from ranking.parts import Parts
from utils import memory
from utils.checkpoints import Teacher
from utils.files import UserError, replacing
from utils.images import ImageFolder, progress
from utils.loader import TestImages
from utils.runtime import Runtime

COLUMNS = ["img_path", "class", "score"]
PART = 4  # batches: what a kill can cost at most


@torch.inference_mode()
def score(teacher: Teacher, folder: ImageFolder, runtime: Runtime, batch_size: int, workers: int | None,
          parts: Parts, apply: Callable = memory.at_once) -> pd.DataFrame | None:
    """softmax(teacher(image))[true class] of every image in the test geometry (DELT, section 3.2).

    Columns COLUMNS, one row an image, sorted by class, then by score, highest first; equal scores by path. None while other
    ranks are at work on their `parts`, each of a few batches. `apply`: memory.at_once or memory.in_halves.
    """
    batches = TestImages(folder, teacher.input_size, batch_size, workers)
    count = math.ceil(len(batches) / PART)
    model = runtime.compiled(runtime.frozen(teacher.model), len(batches))
    numbers = [number for part in parts.missing(count) for number in range(len(batches))[part * PART:(part + 1) * PART]]
    scores: list[torch.Tensor] = []
    with progress(total=len(numbers) * batch_size, desc="ranking", unit="img") as bar:
        for number, (images, labels) in zip(numbers, batches.some(numbers)):
            with runtime.autocast():
                logits = apply(lambda images: model(runtime.normalised(images, teacher.mean, teacher.std)), images)
            probabilities = logits.float().softmax(1)
            scores.append(probabilities.gather(1, labels.to(runtime.device)[:, None])[:, 0].cpu())
            bar.update(len(images))
            if number % PART == PART - 1 or number == len(batches) - 1:
                parts.save(number // PART, {"scores": torch.cat(scores)})
                scores = []
    found = parts.all(count)
    if found is None:
        return None
    table = pd.DataFrame({"img_path": folder.paths, "class": [folder.classes[label] for label in folder.labels],
                          "score": torch.cat([part["scores"] for part in found]).double().numpy()})
    return table.sort_values(["class", "score", "img_path"], ascending=[True, False, True], ignore_index=True)


def write(table: pd.DataFrame, path: str | Path) -> None:
    with replacing(path) as temporary:
        # Nine digits give a float32 back exactly.
        table.to_csv(temporary, index=False, float_format="%.9g", quoting=csv.QUOTE_MINIMAL, lineterminator="\n")


def read(path: str | Path, folder: ImageFolder) -> pd.DataFrame:
    """A ranking file of the images in `folder`.

    Raises UserError if it is no CSV, lacks a column, has a score that is no number, or names an image or a class
    that the folder does not hold.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of rows longer than the header: they name no image of the folder
            table = pd.read_csv(path, dtype={"img_path": str, "class": str}, keep_default_na=False, encoding="utf-8",
                                index_col=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--ranking-file {path}: not a readable CSV ({str(error).splitlines()[0]})") from None
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UserError(f"--ranking-file {path}: lacks the column {', '.join(missing)} (it has "
                        f"{', '.join(map(str, table.columns))}); needed: {', '.join(COLUMNS)}")
    numbers = pd.to_numeric(table["score"], errors="coerce")
    if (bad := ~np.isfinite(numbers.to_numpy(float))).any():
        row = int(bad.argmax())
        raise UserError(f"--ranking-file {path}: line {row + 2}: score '{table['score'].iloc[row]}' is not a number")
    owner = {image: folder.classes[label] for image, label in zip(folder.paths, folder.labels)}
    for line, (image, name) in enumerate(zip(table["img_path"], table["class"]), start=2):
        if image not in owner:
            raise UserError(f"--ranking-file {path}: line {line} names {image}, which is not in {folder.role} "
                            f"{folder.root}; give the folder it was made from, or remove the file to score anew")
        if owner[image] != name:
            raise UserError(f"--ranking-file {path}: line {line} gives {image} the class '{name}', but it lies in "
                            f"the folder of '{owner[image]}'")
    if table["img_path"].duplicated().any():
        raise UserError(f"--ranking-file {path}: names {table['img_path'][table['img_path'].duplicated()].iloc[0]} twice")
    return table.assign(score=numbers)[COLUMNS]
