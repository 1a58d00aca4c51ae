"""The selection on disk: images as they are or collages of them, and the manifest."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranking.collage import Collages
from ranking.crops import Offered
from ranking.flags import Job
from utils.data.datasets import known
from utils.data.image_folder import ImageFolder
from utils.data.manifest import MANIFEST, Manifest, seconds
from utils.data.sizes import common_size
from utils.data.tiles import Tile, is_box
from utils.run import files, many_files
from utils.run.errors import UserError, listed
from utils.run.files import flush_folder, sha256, shortened, write_json
from utils.run.outputs import claim
from utils.run.progress import progress
from utils.run.stopwatch import Stopwatch


@dataclass(frozen=True)
class Selection:
    """What was chosen of each class, in the order of the criterion."""

    tiles: dict[str, list[Tile]]
    seconds: float  # of the scores or features that it is by, in all processes
    size: int | None = None  # pixels of the input of the teacher that it is by, where that is known
    request: str | None = None  # names a choice by a teacher's answers, where no ranking file has them


def write(job: Job, folder: ImageFolder, chosen: Selection, clock: Stopwatch) -> None:
    """Write the chosen images or their collages, and say in the manifest how they were chosen, and their bytes."""
    if job.short_classes != "error":
        say_short_classes(job, chosen)
    settings = _settings(job, folder, chosen)
    found = claim(job.output_dir, MANIFEST, settings, job.overwrite, job.train_dir)
    path, before = Path(job.output_dir) / MANIFEST, chosen.seconds
    if "seconds" in found:  # of an earlier process, which had those of the scores
        before = seconds(found)
    try:
        written, facts = _write_images(job, chosen, settings)
    except BaseException:
        with contextlib.suppress(OSError):
            write_json(path, {**found, "seconds": round(before + clock.lap(), 1)})
        raise
    if found.get("finished") and not written and all(found.get(name) == value for name, value in facts.items()):
        print(f"ranking: {job.output_dir} is complete")
        return
    taken = round(before + clock.lap(), 1)
    content = {
        "settings": settings,
        "train_dir": job.train_dir,
        "dataset": job.geometry.dataset,
        "ranking_sha256": sha256(job.ranking_file) if job.has_ranking else None,
        "request": chosen.request,
        "input_size": chosen.size,
        "seconds": taken,
        **facts,
        "finished": True,
    }
    flush_folder(job.output_dir)  # what the manifest is going to say is there
    write_json(path, content)
    print(
        f"ranking: {job.ipc} {job.criterion} images of each of {len(chosen.tiles)} classes in {job.output_dir}; "
        f"{taken:.0f} s"
    )


def _settings(job: Job, folder: ImageFolder, chosen: Selection) -> dict[str, Any]:
    """What identifies the folder in its manifest: how the images were chosen, and which they are."""
    settings = {
        "criterion": job.criterion,
        "ipc": job.ipc,
        "images": {name: [tile.path for tile in tiles] for name, tiles in chosen.tiles.items()},
    }
    if job.chooses.draws or job.patches.candidates or job.patches.crops:
        settings["seed"] = job.seed
    if job.short_classes != "error":
        settings["short_classes"] = job.short_classes
    if job.patches.candidates:
        settings["candidates"] = job.patches.candidates
    if job.patches.makes_images:
        settings |= {"crops": job.patches.crops, "tiles": job.patches.tiles}
        settings["size"] = output_size(job, folder, chosen.size)
    if job.patches.crops:
        settings["boxes"] = {name: [list(tile.box) for tile in tiles] for name, tiles in chosen.tiles.items()}
    return settings


def _write_images(job: Job, chosen: Selection, settings: dict) -> tuple[int, dict[str, dict]]:
    """How many images were not there yet, and what the manifest is going to say of each."""
    train_dir, output_dir = Path(job.train_dir), Path(job.output_dir)
    if not job.patches.makes_images:
        written, digests = copy(settings["images"], train_dir, output_dir)
        return written, {"sha256": digests}
    collages = Collages(train_dir, settings["size"], job.patches.tiles)
    found = Manifest.of(output_dir)
    known = {path: (digest, found.tiles.get(path)) for path, digest in found.digests.items()}
    written, digests, sources = collages.write(chosen.tiles, output_dir, known)
    return written, {"sha256": digests, "tiles": sources}


def output_size(job: Job, folder: ImageFolder, scored: int | None) -> int:
    """Pixels of images that are made: by the flags, by the scores (`scored`), the teacher, the data set or the images.

    In this order, as when a teacher is loaded to score: the same command gives the same size whether the scores are
    there or not.
    """
    if size := job.geometry.input_size or scored:
        return size
    facts = known(job.geometry.dataset)
    if job.teacher.teacher_path:
        return job.teacher.load(job.geometry, job.train_dir, "--train-dir")[0].geometry.input_size
    return facts.input_size if facts else common_size(folder.sizes())


def say_short_classes(job: Job, chosen: Selection) -> None:
    least = -(-job.needed // job.patches.per_image)
    counts = {name: len({tile.path for tile in tiles}) for name, tiles in chosen.tiles.items()}
    short = [f"{name} ({count})" for name, count in counts.items() if count < least]
    if short:
        done = "their images are repeated" if job.short_classes == "repeat" else "what they have is selected"
        print(f"ranking: fewer than {least} images in class {listed(short, 5)}: {done}")


def existing(job: Job, images: Offered, request: str) -> dict[str, list[Tile]] | None:
    """What is on disk of this very choice among the `images`, once it is complete.

    Raises UserError where that cannot be what was chosen, unless it is to be overwritten.
    """
    found = Manifest.of(job.output_dir)
    if not found.is_finished or found.content.get("request") != request:
        return None
    chosen, boxes = found.settings.get("images"), found.settings.get("boxes")
    reason = fault(job, images, chosen, boxes)
    if reason is None:
        return {name: tiles_from(chosen[name], boxes[name] if boxes else None) for name in images.classes}
    if job.overwrite:
        return None
    raise UserError(
        f"{Path(job.output_dir) / MANIFEST}: {reason}; it was changed or damaged: give --overwrite to select anew"
    )


def tiles_from(paths: list[str], boxes: list | None) -> list[Tile]:
    """The tiles of one class as JSON has them."""
    return [Tile(path, tuple(box) if box else None) for path, box in zip(paths, boxes or [None] * len(paths))]


def fault(job: Job, images: Offered, chosen: Any, boxes: Any) -> str | None:
    """Why a manifest's `chosen` paths, and `boxes` of crops, cannot be what is chosen of each class; else None.

    A class with too few has all of them; they come again in their order where --short-classes says so.
    """
    are_crops = bool(job.patches.crops)
    if not isinstance(chosen, dict) or set(chosen) != set(images.classes):
        return "its selection has other classes"
    if are_crops != isinstance(boxes, dict) or are_crops and set(boxes) != set(images.classes):
        return "its boxes are not those of its selection"
    for label, name in enumerate(images.classes):
        paths, own = chosen[name], boxes[name] if are_crops else None
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            return f"its selection of class '{name}' is no list of paths"
        if are_crops and not (isinstance(own, list) and len(own) == len(paths) and all(map(is_box, own))):
            return f"its boxes of class '{name}' are no list of top, left, height and width of each image"
        if reason := _fault_of_class(job, images, label, tiles_from(paths, own)):
            return reason
    return None


def _fault_of_class(job: Job, images: Offered, label: int, found: list[Tile]) -> str | None:
    name, tiles = images.classes[label], images.tiles(label)
    offered = Counter(tiles)
    if unknown := sorted({tile.path for tile in found} - {tile.path for tile in tiles}):
        return f"it selects {unknown[0]}, which is not in class '{name}' of {images.role} {images.root}"
    if unknown := [tile for tile in found if tile not in offered]:
        return f"it selects {list(unknown[0].box)} of {unknown[0].path}, which is none of its crops"
    distinct = min(job.needed, len(tiles))
    count = job.needed if job.short_classes == "repeat" else distinct
    if len(found) != count:
        return f"it selects {len(found)} images of class '{name}', not {count}"
    if Counter(found[:distinct]) - offered or found != [found[place % distinct] for place in range(count)]:
        return f"it selects an image of class '{name}' twice"
    return None


def copy(chosen: dict[str, list[str]], train_dir: Path, output_dir: Path) -> tuple[int, dict[str, str]]:
    """Copy the `chosen` images (class -> paths in `train_dir`) to output_dir/class/POSITION_name, byte for byte.

    Returns how many were not there yet, and the SHA-256 of each by its path in `output_dir`. The caller flushes them.
    """
    sources = {}
    for name, paths in chosen.items():
        width = max(3, len(str(len(paths) - 1)))
        (output_dir / name).mkdir(exist_ok=True)
        for position, path in enumerate(paths):
            sources[f"{name}/{shortened(f'{position:0{width}d}_{Path(path).name}')}"] = train_dir / path

    def write(path: str) -> tuple[bool, str]:
        return files.copy(sources[path], output_dir / path), sha256(output_dir / path)

    with progress(total=len(sources), desc="copying", unit="img", delay=2) as bar:
        copied, digests = 0, {}
        for path, [(anew, found)] in zip(sources, many_files.each(write, list(sources))):
            copied += anew
            digests[path] = found
            bar.update(1)
    return copied, digests
