"""Which input size suits images, known by their headers alone: quick enough for scripts to ask before any work."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Iterator, Sequence

from PIL import Image

from utils.data.datasets import SMALL_SIZE
from utils.data.formats import folders_in, is_image, walked
from utils.run.errors import UserError

MIN_SIZE, MAX_SIZE = 8, 4096  # pixels of an input
LARGE_INPUT = 224
SUITED = 95  # percent of the images whose own size an input has: a few others do not decide for all
GLANCE = 200  # images that are looked at where not all are


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The input size in pixels that suits images of these (width, height): their own if small, 224 otherwise.

    Their own is the shorter side that 95 % of them do not exceed.
    """
    sides = sorted(map(min, sizes))
    side = sides[-(-SUITED * len(sides) // 100) - 1]
    return max(side, MIN_SIZE) if side <= SMALL_SIZE else LARGE_INPUT


def larger(sizes: Sequence[tuple[int, int]], size: int) -> str:
    """`; 3 of 5,000 are larger`, for the line that says their common size; nothing where that is not their own."""
    count = sum(min(one) > size for one in sizes) if size <= SMALL_SIZE else 0
    return f"; {count:,} of {len(sizes):,} {'is' if count == 1 else 'are'} larger" if count else ""


def size_at_a_glance(folder: Path) -> int:
    """`common_size` by the first images of each class of an ImageFolder, GLANCE in all, or one of each class.

    Raises UserError where there is none, or a link leads back up.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    classes = list(folders_in(folder))
    sizes = [size for path in classes for size in islice(_sizes(path), -(-GLANCE // len(classes)))]
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
