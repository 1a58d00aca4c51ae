"""Which input size suits images, known by their headers alone: quick enough for scripts to ask before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Sequence

from PIL import Image

from utils.data.datasets import SMALL_SIZE
from utils.data.formats import folders_in, is_image, walked
from utils.run.errors import UserError

MIN_SIZE, MAX_SIZE = 8, 4096  # pixels of an input
LARGE_INPUT = 224


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The input size in pixels that suits images of these (width, height): their own if small, 224 otherwise."""
    largest = max(min(size) for size in sizes)
    return max(largest, MIN_SIZE) if largest <= SMALL_SIZE else LARGE_INPUT


def size_at_a_glance(folder: Path) -> int:
    """`common_size` by the first image of each class of an ImageFolder.

    Raises UserError where there is none, or a link leads back up.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    sizes = [size for path in folders_in(folder) if (size := next(_sizes(path), None))]
    if not sizes:
        raise UserError(f"{folder}: holds no images in class folders")
    return common_size(sizes)


def _sizes(folder: Path) -> Iterator[tuple[int, int]]:
    for place, names in walked(folder):
        for name in sorted(filter(is_image, names)):
            try:
                with Image.open(Path(place, name)) as image:
                    yield image.size
            except (OSError, ValueError, Image.DecompressionBombError):
                continue  # one that the stages themselves will speak of
