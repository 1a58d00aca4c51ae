"""The choice of each class's images by the criterion, and what a class with too few of them means."""

from __future__ import annotations

import pandas as pd

from ranking import crops
from ranking.criteria import Candidates
from ranking.crops import BOX
from ranking.flags import Job
from utils.data.image_folder import ImageFolder
from utils.data.tiles import Tile
from utils.run.errors import UserError, listed

GO_ON = "--short-classes repeat or keep to go on with those that are there"


def require_enough(job: Job, folder: ImageFolder) -> None:
    """Raises UserError where a class has too few images."""
    if not job.patches.makes_images:
        folder.require(job.ipc, f"give at most --ipc {folder.fewest()}, or {GO_ON}")
    elif (has := folder.fewest() * job.patches.per_image) < job.needed:
        name = folder.classes[min(range(len(folder.classes)), key=lambda label: len(folder.span(label)))]
        raise UserError(
            f"{folder.role} {folder.root}: class '{name}' has {folder.fewest()} images to choose {job.needed} tiles "
            f"from (--ipc {job.ipc}, --tiles {job.patches.tiles}); give at most --ipc {has // job.patches.in_output}, "
            f"more --crops, or {GO_ON}"
        )


def chosen_from(job: Job, folder: ImageFolder, table: pd.DataFrame) -> dict[str, list[Tile]]:
    """What is chosen of each class from the rows of `table`. Raises UserError where a class has too few images."""
    if job.patches.candidates and not job.patches.crops:  # a ranking file has all images
        table = table[table["img_path"].isin(crops.candidates(folder, job.patches.candidates, job.seed).paths)]
    rows = {name: group for name, group in table.groupby("class")}
    counts = {name: len(rows.get(name, ())) for name in folder.classes}
    least = job.needed if job.short_classes == "error" else 1
    if few := [f"{name} ({n})" for name, n in counts.items() if n < least]:
        most = min(counts.values()) // job.patches.in_output
        advice = f"at most {most} can be selected" + (f", or give {GO_ON}" if min(counts.values()) else "")
        raise UserError(f"--ipc {job.ipc}: too few images in class {listed(few, 5)}; {advice}")
    chosen = {}
    for name in folder.classes:
        found = rows[name]
        if job.patches.crops and job.chooses.needs == "scores":
            found = crops.best(found, job.needed)
        boxes = [tuple(map(int, box)) for box in found[BOX].to_numpy()] if job.patches.crops else [None] * len(found)
        tiles = list(map(Tile, found["img_path"], boxes))
        images = Candidates(found["img_path"].tolist(), stream_of(job, name), found["score"].tolist())
        chosen[name] = choose(job, name, tiles, images)
    return chosen


def choose(job: Job, name: str, tiles: list[Tile], images: Candidates) -> list[Tile]:
    """The chosen ones of class `name`'s `tiles`, in order; of a class with too few as --short-classes says.

    Raises UserError where the criterion gives other than as many different ones as are asked for.
    """
    count = min(job.needed, len(tiles))
    given = list(map(int, job.chooses.choose(images, count)))
    valid = {index for index in given if 0 <= index < len(tiles)}
    if not len(given) == len(valid) == count:
        raise UserError(
            f"--criterion {job.criterion}: chose {len(given)} of class '{name}', {len(valid)} of them different ones "
            f"from 0 to {len(tiles) - 1}; its function has to give {count} different indices"
        )
    found = [tiles[index] for index in given]
    if job.short_classes == "repeat":
        found = [found[position % len(found)] for position in range(job.needed)]
    return found


def stream_of(job: Job, name: str) -> tuple | None:
    """Names the random stream of class `name`, for a criterion that draws."""
    return (job.seed, "random selection", name) if job.chooses.draws else None
