"""ImageFolder as it passes between stages: listing, reading, checking and writing images."""

from __future__ import annotations

import copy
import os
import sys
from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from tqdm import tqdm

from utils import ranks
from utils.files import UserError, digest, replacing, sha256

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
IN_MEMORY_BYTES = 2 << 30  # decoded images up to this size are kept; larger sets are read again each epoch
MAX_PIXELS = 100_000_000  # an image that claims more is refused before it is decoded
SLICE = 512  # images that are decoded between two looks at what was found
SMALLEST = 8  # pixels of an input
SMALL = 64  # pixels; up to this size images get the small-image stem, the padded crop, and a place in memory


class ImageFolder:
    """The images below `root`, one folder a class, in sorted order.

    Attributes: `classes`, the names in label order; `paths`, relative to the root and with `/`; `labels`, one
    integer for each path. `role` names the folder in messages ("--train-dir").
    """

    def __init__(self, root: str | Path, role: str, classes: Sequence[str] | None = None, whose: str = "the teacher"):
        """List the folder without opening an image.

        `classes`: the names in the label order that holds elsewhere (`whose`, for messages); sorted names if None.
        Raises UserError if the folder is missing, empty or flat, if a class is empty, or if the class folders are
        not exactly `classes`.
        """
        self.root, self.role = Path(root), role
        self._kept: list[Image.Image] = []
        self._sizes: list[tuple[int, int]] = []
        self._fingerprint: str | None = None
        found = self._class_folders()
        if classes is not None and set(classes) != set(found):
            raise UserError(f"{role} {root}: class folders differ from the classes of {whose}"
                            f"{_names('; missing: ', set(classes) - set(found))}"
                            f"{_names('; unknown: ', set(found) - set(classes))}")
        self.classes = list(classes) if classes is not None else found
        self.paths: list[str] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            files = _image_files(self.root, name)
            if not files:
                raise UserError(f"{role} {root}: class folder '{name}' has no images ({', '.join(EXTENSIONS)})")
            self.paths += files
            self.labels += [label] * len(files)

    def _class_folders(self) -> list[str]:
        if not self.root.is_dir():
            raise UserError(f"{self.role} {self.root}: no such folder; give the root of an ImageFolder "
                            "(one sub-folder of images for each class)")
        entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise UserError(f"{self.role} {entry.path}: is a link that leads nowhere; mend it or remove it")
        folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        if not folders:
            flat = any(entry.name.lower().endswith(EXTENSIONS) for entry in entries)
            raise UserError(f"{self.role} {self.root}: " + (
                "images lie in the folder itself; put each class's images in a sub-folder of its name" if flat
                else "the folder is empty; one sub-folder of images for each class is needed"))
        return folders

    def __len__(self) -> int:
        return len(self.paths)

    def span(self, label: int) -> range:
        """Where the images of a class stand: the labels rise."""
        return range(bisect_left(self.labels, label), bisect_right(self.labels, label))

    def of_class(self, label: int) -> list[str]:
        span = self.span(label)
        return self.paths[span.start:span.stop]

    def fewest(self) -> int:
        """The number of images in the smallest class."""
        return int(np.bincount(self.labels).min())

    def require(self, ipc: int) -> None:
        """Raises UserError naming a class with fewer than `ipc` images."""
        for label, count in enumerate(np.bincount(self.labels)):
            if count < ipc:
                raise UserError(f"{self.role} {self.root}: class '{self.classes[label]}' has {count} images, "
                                f"{ipc} are needed (--ipc {ipc})")

    def first(self, ipc: int) -> "ImageFolder":
        """The first `ipc` images of each class by name. Raises UserError where a class has fewer."""
        self.require(ipc)
        chosen = copy.copy(self)
        labels = range(len(self.classes))
        chosen.paths = [path for label in labels for path in self.of_class(label)[:ipc]]
        chosen.labels = [label for label in labels for _ in range(ipc)]
        chosen._kept, chosen._sizes, chosen._fingerprint = [], [], None
        return chosen

    def fingerprint(self) -> str:
        """SHA-256 over the names, labels and bytes of all images."""
        if self._fingerprint is None:
            self._fingerprint = digest([[path, label, sha256(self.root / path)]
                                        for path, label in zip(self.paths, self.labels)])
        return self._fingerprint

    def load(self, workers: int | None = None) -> list[tuple[int, int]]:
        """Decode every image once, before any long work; return the (width, height) of each.

        The decoded images are kept for `read` while they fit into IN_MEMORY_BYTES together; a larger folder is
        only checked, by each rank a share. A second call costs nothing. Raises UserError for the first image that is damaged.
        """
        if self._sizes:
            return self._sizes
        kept: list[Image.Image] = []
        sizes: list[tuple[int, int]] = []
        rank, world = ranks.rank_and_world()

        def reader(number: int) -> Callable[[Path], Any]:
            return read_rgb if len(kept) == len(sizes) else _probe if number % world == rank else _size

        for found in self._decoded(self.paths, workers, reader):
            if isinstance(found[0], Image.Image):
                kept.extend(found)
                found = [image.size for image in found]
            sizes.extend(found)
            # PIL keeps four bytes for an RGB pixel.
            if len(kept) == len(sizes) and sum(4 * width * height for width, height in sizes) > IN_MEMORY_BYTES:
                kept.clear()
        self._kept, self._sizes = kept, sizes
        return sizes

    def check(self, workers: int | None = None) -> None:
        """Decode this rank's share of the images once and keep none: memory does not grow with their number.

        Raises UserError for the first image that is damaged.
        """
        rank, world = ranks.rank_and_world()
        for _ in self._decoded(self.paths[rank::world], workers, lambda number: _probe):
            pass

    def _decoded(self, paths: list[str], workers: int | None, reader: Callable[[int], Callable[[Path], Any]]) -> Iterator[list]:
        """What `reader(number)` makes of each slice's files; in slices, so that an early error need not wait for all."""
        # Threads are enough: PIL decodes outside of the interpreter's lock.
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool, \
                progress(total=len(paths), desc=f"reading {self.role}", unit="img", leave=False, delay=2) as bar:
            for number, start in enumerate(range(0, len(paths), SLICE)):
                found = list(pool.map(reader(number), [self.root / path for path in paths[start:start + SLICE]]))
                yield found
                bar.update(len(found))

    @property
    def in_memory(self) -> bool:
        return bool(self._kept)

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB. Raises UserError if it is not an image or is damaged."""
        return self._kept[index] if self._kept else read_rgb(self.root / self.paths[index])


def pick(n: int, most: int) -> list[int]:
    """At most `most` of 0 .. n - 1, first and last among them, evenly spread; for what is shown of a set."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, most))})


def progress(**options) -> tqdm:
    """A tqdm bar that writes seldom where nobody watches, as into a log file; of several ranks on a terminal one has it."""
    return tqdm(disable=not ranks.speaks(), mininterval=0.5 if sys.stderr.isatty() else 20, maxinterval=60, **options)


def _names(prefix: str, names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return f"{prefix}{', '.join(listed[:8])}{more}" if listed else ""


def _image_files(root: Path, name: str) -> list[str]:
    """All images below a class folder, relative to `root`. Links are followed; raises UserError for one that leads back."""
    found = []
    for folder, subfolders, files in os.walk(root / name, followlinks=True):
        subfolders.sort()
        for link in (os.path.join(folder, sub) for sub in subfolders):
            if os.path.islink(link) and os.path.commonpath([os.path.realpath(link), os.path.realpath(folder)]) \
                    == os.path.realpath(link):
                raise UserError(f"{link}: is a link that leads back to {os.path.realpath(link)}, a folder around it; remove it")
        relative = Path(folder).relative_to(root).as_posix()
        found += [f"{relative}/{file}" for file in files if file.lower().endswith(EXTENSIONS) and file[0] != "."]
    return sorted(found)


def read_rgb(path: Path) -> Image.Image:
    """The image at `path` as RGB; palette, grayscale (8 and 16 bit), CMYK and RGBA are converted.

    Raises UserError if the file is missing, not an image, cut off, or claims more than MAX_PIXELS.
    """
    image = _open(path)
    try:
        if image.mode.startswith("I;16") or image.mode == "I":
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:
        raise _unreadable(path, error) from None


def _size(path: Path) -> tuple[int, int]:
    with _open(path) as image:
        return image.size


def _probe(path: Path) -> tuple[int, int]:
    image = _open(path)
    size = image.size
    # A JPEG decoded at an eighth of its size still reads every byte, at a third of the time.
    image.draft("RGB", (1, 1))
    try:
        image.load()
    except Exception as error:
        raise _unreadable(path, error) from None
    return size


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
    except Exception as error:
        raise _unreadable(path, error) from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{path}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; remove it")
    return image


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else \
        "not an image" if type(error).__name__ == "UnidentifiedImageError" else str(error) or type(error).__name__
    return UserError(f"{path}: cannot be read ({reason}); replace it or remove it")


def common_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The input size in pixels that suits images of these (width, height): their own if small, 224 otherwise."""
    largest = max(min(size) for size in sizes)
    return max(largest, SMALLEST) if largest <= SMALL else 224


def resize_for_test(size: int) -> v2.Transform:
    """The field's test geometry: the shorter side to size // 7 * 8 (32 for 32, 72 for 64, 256 for 224), then the centre.

    Sizes just below a multiple of 7 would become smaller than the crop: they are left as they are.
    """
    return v2.Compose([v2.Resize(max(size, size // 7 * 8)), v2.CenterCrop(size)])


def resize_whole(size: int) -> v2.Transform:
    """The shorter side to `size`, then the centre: an image of that size as it stands."""
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])


def to_batch(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB images of one size -> uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def save_image(path: str | Path, pixels: torch.Tensor) -> None:
    """Write uint8 (3, H, W) by the format of the path's ending: lossless PNG, or JPEG of quality 95."""
    with replacing(path) as temporary:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        image.save(temporary, **({} if temporary.suffix == ".png" else {"quality": 95, "subsampling": 0}))
