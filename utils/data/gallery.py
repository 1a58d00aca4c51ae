"""Some images of some classes, to be looked at: blocks of thumbnails, and one picture of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ContextManager, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from utils.data.image_folder import ImageFolder
from utils.data.images import read_rgb
from utils.run.files import replacing

SIDE = 224  # pixels of the largest thumbnail
CLASSES, IMAGES = 8, 10  # shown at most, if the caller does not say
GAP = 0.08  # between the images of the picture, in widths of an image


@dataclass(frozen=True)
class ImageSet:
    """Images that belong together, such as the recovered ones: class name -> paths in order of position."""

    title: str
    paths: Mapping[str, Sequence[Path]]
    updates: Sequence[int] | None = None  # that the image at each position had; None where that has no meaning

    @classmethod
    def from_folder(cls, title: str, folder: ImageFolder, updates: Sequence[int] | None = None) -> "ImageSet":
        """The images of a folder whose names sort by position."""
        names = enumerate(folder.classes)
        paths = {name: [folder.root / path for path in folder.of_class(label)] for label, name in names}
        return cls(title, paths, updates)


@dataclass(frozen=True)
class Thumbnail:
    """A square RGB image of at most SIDE pixels."""

    image: Image.Image
    enlarged: bool  # each stored pixel is a square of several
    position: int  # in its class
    updates: int | None

    @property
    def facts(self) -> list[str]:
        """What a caption says of the image."""
        return [f"position {self.position}", *([] if self.updates is None else [f"{self.updates} updates"])]


@dataclass(frozen=True)
class Strip:
    """Images of one class of one set, in order of position."""

    title: str  # of the set
    thumbnails: list[Thumbnail]


@dataclass(frozen=True)
class Block:
    """The strips of one class, in the order of the sets."""

    name: str  # of the class
    strips: list[Strip]


def blocks(
    classes: Sequence[str],
    sets: Sequence[ImageSet],
    most_classes: int = CLASSES,
    most_images: int = IMAGES,
    reading: Callable[[str], ContextManager[None]] = contextlib.nullcontext,
) -> Iterator[Block]:
    """A block for each of at most `most_classes` of the `classes`, of each set at most `most_images` of its images.

    A set that lacks a class has no strip there. The images are read block by block, and those of a strip within
    `reading(what they are)`. Raises UserError for one that cannot be read, if `reading` lets it pass.
    """
    for number in evenly_spaced(len(classes), most_classes):
        name, strips = classes[number], []
        for images in sets:
            if name in images.paths:
                with reading(f"the images of {images.title}, class {name}"):
                    strips.append(_strip(images, name, most_images))
        yield Block(name, strips)


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 to n - 1: the first, the last and, at equal distances, others between them."""
    return sorted({round(number) for number in np.linspace(0, n - 1, min(n, most))})


def draw(path: str | Path, classes: Sequence[str], sets: Sequence[ImageSet]) -> None:
    """Write the blocks of the `classes` as one picture, a PNG: one line for each class and set.

    The sets have the same number of images in every class; the last one's positions and updates head the columns.
    Raises UserError for an image that cannot be read.
    """
    lines = [(block, strip) for block in blocks(classes, sets) for strip in block.strips]
    headed = lines[0][0].strips[-1].thumbnails
    count = len({block.name for block, _ in lines})
    figure = Figure(figsize=(1.3 + 0.92 * len(headed), 0.7 + 0.92 * len(lines) + 0.14 * count), dpi=110)
    axes = figure.subplots()
    y, ticks, names = 0.0, [], []
    for block, strip in lines:
        for column, thumbnail in enumerate(strip.thumbnails):
            left = column * (1 + GAP)
            axes.imshow(thumbnail.image, extent=(left, left + 1, y + 1, y))
        ticks.append(y + 0.5)
        names.append(f"{block.name}\n{strip.title}")
        y += 1 + (3 * GAP if strip is block.strips[-1] else GAP / 2)
    axes.set(xlim=(-GAP, len(headed) * (1 + GAP)), ylim=(y, -GAP), aspect="equal")
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)  # a class may have dollars in its name
    axes.set_xticks(
        [column * (1 + GAP) + 0.5 for column in range(len(headed))],
        ["\n".join(thumbnail.facts) for thumbnail in headed],
        fontsize=7,
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")


def _strip(images: ImageSet, name: str, most: int) -> Strip:
    paths, updates = images.paths[name], images.updates or ()
    return Strip(
        images.title,
        [
            _thumbnail(paths[position], position, updates[position] if position < len(updates) else None)
            for position in evenly_spaced(len(paths), most)
        ],
    )


def _thumbnail(path: Path, position: int, updates: int | None) -> Thumbnail:
    """The square in the centre of the image at `path`.

    A small one is enlarged by a whole factor and without smoothing, so that what is seen is what is stored.
    """
    image = read_rgb(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    factor = SIDE // side
    if factor > 1:
        image = image.resize((side * factor, side * factor), Image.Resampling.NEAREST)
    elif side > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return Thumbnail(image, factor > 1, position, updates)
