"""What is shared: the images of a set in the teacher's order of classes, what its manifest says, stored labels."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from utils.data.class_folders import in_any_order
from utils.data.image_folder import ImageFolder, by_number
from utils.data.manifest import MANIFEST, Manifest, part
from utils.nets import checkpoints
from utils.nets.class_order import read_names
from utils.run.errors import UserError
from validate.labels import StoredLabels, require_alike

# Images that validate reads and the imagefolder of `datasets` leaves out without a word, and folders that it does.
UNREAD = (".avif", ".avifs", ".jif", ".jfi", ".mpo", ".pfm", ".qoi")
UNREAD_FOLDER = "__"


@dataclass(frozen=True)
class Source:
    """A set on disk. `labels` of the folder are the teacher's, where anybody says these."""

    folder: ImageFolder

    @classmethod
    def of(cls, path: str, given: Sequence[str] | None = None, owner: str = "") -> Source:
        """`given`: the classes in label order, as their `owner` says; else the manifest's, else they are sorted.

        Raises UserError where it is no finished set of unchanged images that `datasets` can load.
        """
        folder = ImageFolder(path, "--syn-dir")
        said = given or _classes(folder.manifest)
        if said and len(said) != len(folder.classes):
            raise UserError(f"--syn-dir {path}: has {len(folder.classes)} classes, {owner or MANIFEST} has {len(said)}")
        if said:
            # Sets that are taken by position have names of their own.
            order = said if set(said) == set(folder.classes) else by_number(folder.classes)
            folder = ImageFolder(path, "--syn-dir", order)
        _check_names(folder)
        found, recorded = cls(folder), folder.manifest.digests
        if changed := [path for path, digest in found.digests.items() if recorded.get(path, digest) != digest]:
            raise UserError(
                f"--syn-dir {path}: {changed[0]} is not what {MANIFEST} says; it was changed or damaged: run "
                "the command that makes the set again"
            )
        return found

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each image."""
        return dict(zip(self.folder.paths, self.folder.hashed(self.folder.paths)))

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.folder.fingerprint(self.digests)

    def is_of(self, fingerprint: object) -> bool:
        """Whether labels or a result that name this fingerprint are of these images, in whatever order of classes."""
        return fingerprint in self._fingerprints

    @functools.cached_property
    def _fingerprints(self) -> set[str]:
        folders = in_any_order(self.folder.root, self.folder.role)
        return {self.fingerprint, *(folder.fingerprint(self.digests) for folder in folders)}

    @property
    def method(self) -> str:
        """What the set is called: by its manifest, else by its folder."""
        return self.manifest.method or self.manifest.criterion or self.folder.root.resolve().name

    @property
    def manifest(self) -> Manifest:
        return self.folder.manifest


def _classes(manifest: Manifest) -> list[str] | None:
    """The names in the teacher's label order, as recover writes them, or in the order that ranking wrote them in."""
    found = manifest.settings.get("classes") or list(part(manifest.settings, "images"))
    return found if isinstance(found, list) and found and all(isinstance(name, str) for name in found) else None


def _check_names(folder: ImageFolder) -> None:
    """Raises UserError where the imagefolder of `datasets` would not give each image with its class."""
    for path in folder.paths:
        if path.count("/") > 1:
            raise UserError(
                f"--syn-dir {folder.root}: {path} is in a folder within its class's, and would be loaded as of another "
                "class; put all images of a class into one folder"
            )
        if path.lower().endswith(UNREAD) or path.startswith(UNREAD_FOLDER):
            raise UserError(
                f"--syn-dir {folder.root}: {path} would be left out by datasets.load_dataset, which reads neither "
                f"{', '.join(UNREAD)} nor folders that begin with {UNREAD_FOLDER}; convert it to PNG, or rename it"
            )


def order_of(
    class_file: str | None, teacher: str | None, stored: Sequence[StoredLabels]
) -> tuple[Sequence[str] | None, str]:
    """The classes in label order, and who says it: the file, or the teacher's checkpoint, or labels; None if nobody.

    Raises UserError where one that is given does not.
    """
    if class_file:
        return read_names(class_file), f"--classes {class_file}"
    if teacher:
        if classes := checkpoints.read(teacher).get("classes"):
            return classes, f"--teacher-path {teacher}"
        raise UserError(f"--teacher-path {teacher}: does not name its classes; give their order as --classes FILE")
    return (stored[0].geometry.classes, f"--labels {stored[0].folder}") if stored else (None, "")


def labels_in(root: str) -> list[StoredLabels]:
    """The labels of all seeds in the folder of --save-labels.

    Raises UserError where there are none, where some are not whole, and as `require_alike`.
    """
    names = [entry.name for entry in Path(root).iterdir()] if Path(root).is_dir() else []
    seeds = sorted(int(found[1]) for found in (re.fullmatch(r"seed([0-9]+)", name) for name in names) if found)
    if not seeds:
        raise UserError(f"--labels {root}: holds no labels (seed0, ...); give the folder of validate --save-labels")
    stored = [StoredLabels(root, seed) for seed in seeds]
    require_alike(stored)
    return stored


def check_labels(stored: Sequence[StoredLabels], source: Source) -> None:
    """Raises UserError where the labels are of other images, or damaged."""
    for labels in stored:
        if not source.is_of(labels.index["settings"].get("images")):
            raise UserError(
                f"--labels {labels.folder}: its labels are of other images than those of {source.folder.root}, or of "
                "a part of them"
            )
        if damaged := labels.damaged():
            raise UserError(f"{damaged[0]}: missing or damaged; run validate with --save-labels again")
