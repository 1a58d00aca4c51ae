"""Image folders whose labels are in the order of given classes: a teacher's, or those of other images."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Sequence

from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder, by_number, has_mixed_numbers
from utils.run.errors import UserError


def folder_for(geometry: Geometry, path: str, role: str, classes_by: str | None = None) -> ImageFolder:
    """The ImageFolder at `path` with labels in the teacher's order. Raises UserError where its classes differ.

    `classes_by` is the value of --classes-by, in stages that have it.
    """
    advice = "give --classes FILE with the folders' names in the teacher's label order if they are the same classes"
    if classes_by:
        advice += ", or --classes-by position if its k-th class is the teacher's k-th"
    if classes_by == "position":
        folder = by_position(path, role, geometry.classes)
    else:
        folder = ImageFolder(path, role, geometry.classes, advice=advice)
    if len(folder.classes) != geometry.num_classes:
        raise UserError(
            f"{role} {path}: has {len(folder.classes)} classes, the teacher knows {geometry.num_classes}; "
            "give the images that it was trained on, or another --teacher-path"
        )
    if geometry.classes is None and has_mixed_numbers(folder.classes):
        orders = "sorted as text", "counts by number"
        order, other = ("taken by number", "sorts them as text") if classes_by == "position" else orders
        print(
            f"{role} {path}: its classes are numbers of different lengths, and {order}: "
            f"{', '.join(folder.classes[:4])}, ...; if the teacher {other}, give --classes FILE"
        )
    return folder


def in_any_order(path: str | Path, role: str, *orders: object) -> Iterator[ImageFolder]:
    """The ImageFolder at `path`, its classes sorted, by number, and in those of the `orders` that are of its classes.

    Digests depend on the order, which records do not always say. Raises UserError as ImageFolder does.
    """
    folder = ImageFolder(path, role)
    yield folder
    for order in (by_number(folder.classes), *orders):
        names = [str(name) for name in order] if isinstance(order, list) else []
        if names != folder.classes and sorted(names) == folder.classes:
            yield ImageFolder(path, role, names)


def by_position(path: str, role: str, classes: Sequence[str] | None) -> ImageFolder:
    """The ImageFolder at `path`, its k-th class folder, by number or sorted, taken for classes[k].

    Folders that have the classes' very names are matched by these; where nobody names classes, the folders' own are
    taken in that order. Raises UserError where the numbers of classes differ.
    """
    folder = ImageFolder(path, role)
    if classes is None or set(classes) == set(folder.classes):
        return ImageFolder(path, role, classes or by_number(folder.classes))
    folder = folder.renamed(classes)
    pairs = ", ".join(f"{own} is {name}" for own, name in list(zip(folder.folders, folder.classes))[:3])
    print(f"{role} {path}: classes by position: {pairs}, ...")
    return folder
