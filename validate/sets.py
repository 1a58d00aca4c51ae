"""The sets of images that are measured: their labels, their sizes, and what their manifests say of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Iterable

from utils.data import input_size
from utils.data.class_folders import by_position
from utils.data.datasets import first_known, known
from utils.data.geometry import Geometry, GeometryFlags
from utils.data.image_folder import ImageFolder
from utils.data.manifest import MANIFEST, Manifest
from utils.nets.teacher import geometry_of_images
from utils.run import distributed
from utils.run.errors import UserError


def geometry_without_teacher(
    sets: Iterable[str], val_dir: str, given: GeometryFlags, classes_by: str, workers: int | None
) -> Geometry:
    """The classes of the test images, and the input size that the flags say, else a set's manifest, else these images.

    Mean and standard deviation are the flags', else those of the data set that flags or manifests name.

    Raises UserError where two manifests say another size, or the data set has another number of classes.
    """
    if classes_by == "position":
        folder = by_position(val_dir, "--val-dir", None)  # by number where they have any, as the sets' are
    else:
        folder = ImageFolder(val_dir, "--val-dir")
    if given.input_size is None and given.dataset is None:
        size, source = input_size.said(sets) or input_size.suited(folder.sizes(), f"the images in {val_dir}")
        print(f"validate: no teacher says the input size; assumed {size} (from {source}); --input-size gives another")
        given = replace(given, input_size=size)
    sets_are_of = known(first_known(given.dataset, *(Manifest.of(path).dataset for path in sets)))
    if sets_are_of:  # by teachers of this data set the same images are normalised so
        given = replace(given, mean=given.mean or sets_are_of.mean, std=given.std or sets_are_of.std)
    return geometry_of_images(given, folder, workers)


def set_of(path: str, test_folder: ImageFolder, classes_by: str) -> ImageFolder:
    """A set with the labels of the test images.

    Raises UserError where its classes differ, or where its images are not those of its manifest.
    """
    if classes_by == "position":
        folder = by_position(path, "--syn-dir", test_folder.classes)
    else:
        advice = "give --classes-by position if its k-th class is the k-th of these"
        folder = ImageFolder(path, "--syn-dir", test_folder.classes, f"--val-dir {test_folder.root}", advice)
    if changed := distributed.by_main(lambda: _changed(folder)):
        side = folder.manifest.tile_side
        raise UserError(
            f"--syn-dir {path}: {changed} is not as {MANIFEST} there says: run the command that makes the set "
            "again, or remove that file if these are the images that you want"
            + (f" (and give --tiles {side}, as it says that they are collages)" if side > 1 else "")
        )
    return folder


def _changed(folder: ImageFolder) -> str | None:
    """An image that the manifest does not name, or has with other bytes; None if there is none."""
    recorded = folder.manifest.digests
    if not recorded:
        return None
    return next(
        (path for path, found in zip(folder.paths, folder.hashed(folder.paths)) if recorded.get(path) != found), None
    )


def require_same_size(sets: list[ImageFolder]) -> None:
    """Raises UserError if the sets differ in size: their students would differ in updates, and prove nothing.

    In images per class, too: batches and schedules go by them.
    """
    first = sets[0]
    for folder in sets[1:]:
        if len(folder) != len(first):
            raise UserError(
                f"--syn-dir {folder.root}: has {len(folder)} images, {first.root} has {len(first)}: sets are compared "
                f"at the same number of images and updates; give --ipc {min(folder.fewest(), first.fewest())}, or "
                "measure them one by one"
            )
        if nominal_ipc(folder) != nominal_ipc(first):
            raise UserError(
                f"--syn-dir {folder.root}: counts as {nominal_ipc(folder)} images per class, {first.root} as "
                f"{nominal_ipc(first)}, by which protocols choose their batch; measure them one by one"
            )


def nominal_ipc(folder: ImageFolder) -> int:
    """Images per class: of the selection that kept a short class as it is, else the mean, rounded."""
    kept = folder.manifest.kept_ipc
    return kept if kept == folder.most() else max(1, math.floor(len(folder) / len(folder.classes) + 0.5))
