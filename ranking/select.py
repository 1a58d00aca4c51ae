"""Selection: which images of a class start the synthesis, and in which order."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

import pandas as pd
import torch

from utils.files import UserError, replacing
from utils.runtime import generator

CRITERIA = ("medium", "top", "min", "random")  # by scores; coreset.py has those by features


def select(paths: list[str], scores: list[float], ipc: int, criterion: str, *stream: object) -> list[str]:
    """The `ipc` chosen of one class's `paths`, rank 0 first.

    top: highest scores; min: lowest; medium: the median in ascending order, then its neighbours in turn (after,
    before, after, ...); random: drawn from `stream`, without looking at the scores. Equal scores are in the order
    of their paths.
    """
    if criterion == "random":
        order = torch.randperm(len(paths), generator=generator(*stream)).tolist()
        by_name = sorted(paths)
        return [by_name[i] for i in order[:ipc]]
    sign = -1 if criterion == "top" else 1
    ordered = [path for _, path in sorted(zip((sign * score for score in scores), paths))]
    return [ordered[i] for i in (_from_middle(len(paths)) if criterion == "medium" else range(len(paths)))][:ipc]


def _from_middle(n: int) -> list[int]:
    # Counted from 1 the median of n is ceil(n / 2); from 0 it is one less.
    middle = (n + 1) // 2 - 1
    steps = [middle] + [middle + sign * k for k in range(1, n) for sign in (1, -1)]
    return [i for i in steps if 0 <= i < n]


def select_all(table: pd.DataFrame, classes: list[str], ipc: int, criterion: str, seed: int) -> dict[str, list[str]]:
    """Class -> chosen paths. Raises UserError naming the classes with fewer than `ipc` images."""
    groups = {name: group for name, group in table.groupby("class")}
    counts = {name: len(groups[name]) if name in groups else 0 for name in classes}
    if few := [f"{name} ({n})" for name, n in counts.items() if n < ipc]:
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise UserError(f"--ipc {ipc}: too few images in class {', '.join(few[:5])}{more}; "
                        f"at most {min(counts.values())} can be selected")
    return {name: select(groups[name]["img_path"].tolist(), groups[name]["score"].tolist(), ipc, criterion,
                         seed, "random selection", name) for name in classes}


def copy(chosen: dict[str, list[str]], train_dir: Path, output_dir: Path) -> int:
    """Copy the chosen images, byte for byte, to output_dir/class/RANK_name; return how many were not there yet."""
    copied = 0
    for name, paths in chosen.items():
        width = max(3, len(str(len(paths) - 1)))
        (output_dir / name).mkdir(exist_ok=True)
        for rank, path in enumerate(paths):
            target = output_dir / name / f"{rank:0{width}d}_{Path(path).name}"
            if target.is_file() and filecmp.cmp(train_dir / path, target, shallow=False):
                continue
            with replacing(target) as temporary:
                shutil.copyfile(train_dir / path, temporary)
            copied += 1
    return copied
