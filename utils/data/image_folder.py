"""ImageFolder as it passes between stages: listing, checking and holding a folder of images."""

from __future__ import annotations

import copy
import functools
import os
import re
import shlex
import unicodedata
from bisect import bisect_left, bisect_right
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar

import numpy as np
from PIL import Image

from utils.data.formats import (
    ARCHIVES,
    EXTENSIONS,
    TENSORS,
    could_be_image,
    is_hidden,
    is_image,
    require_unicode,
    walked,
)
from utils.data.images import probe, read_rgb, size_of
from utils.data.manifest import Manifest, require_whole
from utils.data.names import Names
from utils.data.tiles import Tile
from utils.run import distributed, many_files
from utils.run.device import release_memory
from utils.run.errors import UserError, listed
from utils.run.files import digest, sha256
from utils.run.progress import progress, say_once

IN_MEMORY_BYTES = 2 << 30  # decoded images up to this size are kept; larger sets are read again each epoch
READ = 4  # images that a thread reads at a time
HASHED = 256  # files that a thread hashes at a time
HASHED_BYTES = 2 << 30  # of images, see identity

Item = TypeVar("Item")
Found = TypeVar("Found")


class ImageFolder:
    """The images below `root`, one folder a class, in sorted order.

    Attributes: `classes`, the names in label order; `paths`, relative to the root and with `/`; `labels`, one
    integer for each path. `role` names the folder in messages ("--train-dir").
    """

    def __init__(
        self,
        root: str | Path,
        role: str,
        classes: Sequence[str] | None = None,
        owner: str = "the teacher",
        advice: str = "",
    ):
        """List the folder without opening an image.

        `classes`: the names in the label order of their `owner` (for messages); sorted names if None. `advice` is what
        to do where as many folders have other names.
        Raises UserError if the folder is missing, empty or flat, if a class is empty, if the class folders are not
        exactly `classes`, or if its manifest says that images are missing.
        """
        self.root, self.role = Path(root), role
        self._kept: list[Image.Image] = []
        self._sizes: list[tuple[int, int]] = []
        self._fingerprint: str | None = None
        require_whole(root, role)
        found = self._class_folders()
        if classes is not None and set(classes) != set(found):
            raise UserError(
                f"{role} {root}: class folders differ from the classes of {owner}"
                f"{_difference(root, set(found), set(classes), advice)}"
            )
        self.classes = list(classes) if classes is not None else found
        paths: list[str] = []
        self.labels: list[int] = []
        left_out: list[str] = []
        for label, name in enumerate(self.classes):
            files = _image_files(self.root, name, left_out)
            if not files:
                _say_left_out(self.root, role, left_out)
                raise UserError(
                    f"{role} {root}: class folder '{name}' has no images ({', '.join(EXTENSIONS[:6])}, ...)"
                )
            paths += files
            self.labels += [label] * len(files)
        self.paths: Sequence[str] = Names(paths)
        _say_left_out(self.root, role, left_out)

    def __getstate__(self) -> dict[str, Any]:
        """What another process and a copy get: the rest is read from the disk, as copies of all would take memory."""
        return {name: value for name, value in self.__dict__.items() if name != "manifest"} | {"_kept": []}

    @functools.cached_property
    def manifest(self) -> Manifest:
        """What the folder says of itself. Raises UserError where that is not readable."""
        return Manifest.of(self.root)

    def _class_folders(self) -> list[str]:
        if self.root.is_file():
            raise UserError(f"{self.role} {self.root}: is a file, not a folder of images; {_advice(self.root)}")
        if not self.root.is_dir():
            raise UserError(
                f"{self.role} {self.root}: no such folder; give the root of an ImageFolder "
                "(one sub-folder of images for each class)"
            )
        entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise UserError(f"{self.role} {entry.path}: is a link that leads nowhere; correct it or remove it")
        folders = [entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
        for name in folders:
            require_unicode(self.root / name)
        if not folders:
            flat = any(is_image(entry.name) for entry in entries)
            tensors = [entry.path for entry in entries if entry.name.lower().endswith(TENSORS)]
            if tensors and not flat:
                raise UserError(f"{self.role} {self.root}: holds no images but {tensors[0]}; {_advice(tensors[0])}")
            raise UserError(
                f"{self.role} {self.root}: "
                + (
                    "images lie in the folder itself; put each class's images in a sub-folder of its name"
                    if flat
                    else "the folder is empty; one sub-folder of images for each class is needed"
                )
            )
        return folders

    def __len__(self) -> int:
        return len(self.paths)

    def span(self, label: int) -> range:
        """Where the images of a class stand: the labels rise."""
        return range(bisect_left(self.labels, label), bisect_right(self.labels, label))

    def of_class(self, label: int) -> list[str]:
        span = self.span(label)
        return self.paths[span.start : span.stop]

    def tiles(self, label: int) -> list[Tile]:
        """A class's images, each as one tile."""
        return list(map(Tile, self.of_class(label)))

    def renamed(self, classes: Sequence[str]) -> "ImageFolder":
        """The same images, their classes taken by position: the k-th folder, by number or sorted, is classes[k].

        Raises UserError where the numbers of classes differ.
        """
        if len(classes) != len(self.classes):
            raise UserError(
                f"{self.role} {self.root}: has {len(self.classes)} class folders, and {len(classes)} classes are needed"
            )
        ordered = ImageFolder(self.root, self.role, by_number(self.classes))
        ordered.classes = list(classes)
        return ordered

    @property
    def folders(self) -> list[str]:
        """The class folders in label order; other names than the classes' where those were taken by position."""
        return [self.paths[self.span(label).start].split("/")[0] for label in range(len(self.classes))]

    def fewest(self) -> int:
        """The number of images in the smallest class."""
        return int(np.bincount(self.labels).min())

    def most(self) -> int:
        """The number of images in the largest class."""
        return int(np.bincount(self.labels).max())

    def require(self, ipc: int, advice: str = "") -> None:
        """Raises UserError naming a class with fewer than `ipc` images; `advice` says what would work."""
        for label, count in enumerate(np.bincount(self.labels)):
            if count < ipc:
                raise UserError(
                    f"{self.role} {self.root}: class '{self.classes[label]}' has {count} images, "
                    f"{ipc} are needed (--ipc {ipc}){advice and f'; {advice}'}"
                )

    def require_several(self) -> None:
        """Raises UserError where there is a single image in all: networks with BatchNorm cannot be trained on it."""
        if len(self) == 1:
            raise UserError(
                f"{self.role} {self.root}: a single image in all, {self.paths[0]}, has no variance for BatchNorm; "
                "2 or more are needed"
            )

    def first(self, ipc: int, advice: str = "") -> "ImageFolder":
        """The first `ipc` images of each class by name. Raises UserError, with `advice`, where a class has fewer."""
        self.require(ipc, advice)
        return self.taking([index for label in range(len(self.classes)) for index in self.span(label)[:ipc]])

    def taking(self, indices: Sequence[int]) -> "ImageFolder":
        """Some of the images, in rising order."""
        chosen = copy.copy(self)
        chosen.paths = Names(self.paths[index] for index in indices)
        chosen.labels = [self.labels[index] for index in indices]
        chosen._sizes, chosen._fingerprint = [], None
        return chosen

    def require_same(self) -> None:
        """Raises UserError where ranks that work together list other images."""
        distributed.require_same(f"images in {self.role} {self.root}", [list(self.paths), self.labels])

    def fingerprint(self, recorded: Mapping[str, str] | None = None) -> str:
        """SHA-256 over the names, labels and bytes of all images. Ranks that work together hash a part each.

        `recorded` gives the SHA-256 of images (path -> digest), which are then not read.
        """
        if self._fingerprint is None:
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
            self.require_same()  # or the parts would not be those of one folder
            paths, known = self.paths[rank::world_size], dict(recorded or {})
            unknown = [path for path in paths if not known.get(path)]
            known.update(zip(unknown, self.hashed(unknown)))
            own = [known[path] for path in paths]
            digests = [None] * len(self.paths)
            for number, part in enumerate(distributed.all_gather(own)):
                digests[number::world_size] = part
            self._fingerprint = digest([list(entry) for entry in zip(self.paths, self.labels, digests)])
        return self._fingerprint

    def identity(self) -> str:
        """The fingerprint, or, of more than HASHED_BYTES, a digest of names, labels and sizes.

        For work to which reading all once more is much.
        """
        sizes = self._bytes_of_files()
        return self.fingerprint() if sum(sizes) <= HASHED_BYTES else digest([list(self.paths), self.labels, sizes])

    def _bytes_of_files(self) -> list[int]:
        return list(chain(*many_files.asked(lambda path: os.path.getsize(self.root / path), self.paths)))

    def hashed(self, paths: Sequence[str]) -> Iterator[str]:
        """The SHA-256 of each file, by several threads."""
        return self._each(lambda path: sha256(self.root / path), paths, "hashing", at_a_time=HASHED)

    def load(self, workers: int | None = None, alone: bool = False) -> list[tuple[int, int]]:
        """Decode every image once, before any long work; return the (width, height) of each.

        The decoded images are kept for `read` while they fit into IN_MEMORY_BYTES together; a larger folder is
        only checked, of which each rank does a part; `alone` this process does all of it, as the others do not read the
        images with it. A second call costs nothing. Raises UserError for the first image that is damaged.
        """
        if self._sizes:
            return self._sizes
        kept: list[Image.Image] = []
        sizes: list[tuple[int, int]] = []
        decoded, lock = 0, Lock()  # bytes, counted by the threads: they may be some images ahead
        rank, world_size = (0, 1) if alone else distributed.rank_from_environment()

        def read(index: int) -> Image.Image | tuple[int, int]:
            nonlocal decoded
            path = self.root / self.paths[index]
            if decoded >= IN_MEMORY_BYTES:
                return probe(path) if index % world_size == rank else size_of(path)
            image = read_rgb(path)
            with lock:
                decoded += 4 * image.width * image.height  # PIL keeps four bytes for an RGB pixel
            return image

        for found in self._each(read, range(len(self.paths)), "reading", workers):
            if isinstance(found, Image.Image):
                kept.append(found)
                found = found.size
            sizes.append(found)
            if decoded > IN_MEMORY_BYTES or len(kept) < len(sizes):
                kept.clear()
        if not kept:
            release_memory()  # of as many images as were kept, for a while
        self._kept, self._sizes = kept, sizes
        return sizes

    def sizes(self) -> list[tuple[int, int]]:
        """The (width, height) of each image: by its header alone where not all are decoded by now.

        Raises UserError for the first image whose header cannot be read.
        """
        how = "looking at", many_files.WAITING, many_files.ASKED
        return self._sizes or list(self._each(lambda path: size_of(self.root / path), self.paths, *how))

    def check(self, workers: int | None = None) -> None:
        """Decode this rank's part of the images once and keep none: memory does not grow with their number.

        Raises UserError for the first image that is damaged.
        """
        rank, world_size = distributed.rank_from_environment()
        for _ in self._each(lambda path: probe(self.root / path), self.paths[rank::world_size], "reading", workers):
            pass

    def _each(
        self,
        function: Callable[[Item], Found],
        items: Sequence[Item],
        what: str,
        workers: int | None = None,
        at_a_time: int = READ,
    ) -> Iterator[Found]:
        """`function` of each item in their order, by threads, with a bar that says `what` is done."""
        with progress(total=len(items), desc=f"{what} {self.role}", unit="img", leave=False, delay=2) as bar:
            for found in many_files.each(function, items, workers, at_a_time):
                yield from found
                bar.update(len(found))

    @property
    def in_memory(self) -> bool:
        return bool(self._kept)

    def read(self, index: int) -> Image.Image:
        """Image `index` as RGB. Raises UserError if it is not an image or is damaged."""
        return self._kept[index] if self._kept else read_rgb(self.root / self.paths[index])


def by_number(names: Sequence[str]) -> list[str]:
    """Sorted, and by their last numbers where all are one text and a number: a2 before a10."""
    parts = [re.fullmatch(r"(.*?)([0-9]+)", name, re.DOTALL) for name in names]
    if not all(parts) or len({part[1] for part in parts}) > 1:
        return sorted(names)
    return sorted(names, key=lambda name: (int(re.search(r"[0-9]+$", name)[0]), name))


def has_mixed_numbers(names: Sequence[str]) -> bool:
    """Whether the sorted order of the names is not that of their numbers: 0, 1, 10, 11, 2."""
    return by_number(names) != sorted(names)


def _difference(root: str | Path, found: set[str], classes: set[str], advice: str) -> str:
    missing = _names("; missing: ", classes - found)
    if len(found) != len(classes):
        return f" ({len(found)} classes, not {len(classes)}){missing}{_names('; unknown: ', found - classes)}"
    if _normalised("NFC", found) == _normalised("NFC", classes):  # both would be shown alike
        form = next((form for form in ("NFC", "NFD") if _normalised(form, found) == classes), None)
        command = f"convmv -r -f utf8 -t utf8 --{(form or 'NFC').lower()} --notest {shlex.quote(str(root))}"
        how = f"to {form} ({command})" if form else "to their form"
        return (
            f" in the Unicode form of their names alone{missing}; rename the folders {how}{advice and f', or {advice}'}"
        )
    return f"{missing}{_names('; unknown: ', found - classes)}{advice and f'; {advice}'}"


def _normalised(form: str, names: set[str]) -> set[str]:
    return {unicodedata.normalize(form, name) for name in names}


def _names(prefix: str, names: set[str]) -> str:
    shown = [name if name == name.strip() else repr(name) for name in sorted(names)]
    return f"{prefix}{listed(shown, 8)}" if shown else ""


def _image_files(root: Path, name: str, left_out: list[str]) -> list[str]:
    """All images below a class folder, relative to `root`; files that may be images too go into `left_out`.

    Raises UserError for a link that leads back up, and for a name that is not UTF-8.
    """
    found = []
    for folder, files in walked(root / name):
        relative = Path(folder).relative_to(root).as_posix()
        no_files = {entry.name for entry in os.scandir(folder) if not entry.is_file() and not entry.is_dir()}
        for file in files:
            if is_image(file):
                require_unicode(os.path.join(folder, file))
                if file in no_files:
                    raise UserError(_why_no_file(os.path.join(folder, file)))
                found.append(f"{relative}/{file}")
            elif could_be_image(os.path.join(folder, file)):
                left_out.append(f"{relative}/{file}")
    return sorted(found)


def _why_no_file(path: str) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path}: is a link to {os.readlink(path)}, which is not there; put that back, or remove the link"
    return f"{path}: is named as an image and is no file, but a pipe, a socket or a device; remove it"


def _advice(path: str | Path) -> str:
    """How to make an ImageFolder of a file."""
    name = str(path).lower()
    if name.endswith(TENSORS):
        return f"if it is a set of another project, make images of it: python -m utils.from_tensors {path} NEW_FOLDER"
    if name.endswith(ARCHIVES):
        return "unpack it first, or use python -m utils.data.prepare for a known data set"
    return "give the root of an ImageFolder (one sub-folder of images for each class)"


def _say_left_out(root: Path, role: str, paths: list[str]) -> None:
    if paths:
        first = os.fsencode(min(paths)).decode("utf-8", "backslashreplace")
        say_once(  # a stage lists a folder more than once
            f"{role} {root}: {len(paths)} file{'s' * (len(paths) > 1)} left out that could be images, the first is "
            f"{first}; give them an ending of a format that is read ({', '.join(EXTENSIONS[:6])}, ...), or convert them"
        )
