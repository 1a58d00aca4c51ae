"""Where the synthesis starts: the selected images, or noise."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from recover.units import Member, Unit
from utils.data.class_folders import folder_for
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.images import read_rgb, resize_whole, to_batch
from utils.data.manifest import MANIFEST
from utils.run.errors import UserError
from utils.run.files import sha256, shortened
from utils.run.seeds import generator

NOISE_IPC = 10  # without --ipc: the folder is there for its names


@dataclass
class Starts:
    """The starting image of every member: position p of a class is its p-th file by name, or noise without a folder.

    An image whose SHA-256 the selection's manifest records is not hashed before its unit's turn, and compared then.
    """

    geometry: Geometry
    classes: list[str]
    ipc: int
    folder: ImageFolder | None
    recorded: dict[str, str] = field(default_factory=dict)  # path -> SHA-256
    named: ImageFolder | None = None  # of noise: a folder of the same classes

    @classmethod
    def of_noise(cls, init_dir: str | None, geometry: Geometry, ipc: int | None, classes_by: str = "name") -> Starts:
        """Raises UserError where nothing names the classes, or the folder does not fit the teacher."""
        if geometry.classes is None and init_dir is None:
            raise UserError(
                "the teacher does not name its classes; give an ImageFolder with the class folders as --init-dir"
            )
        # Whoever names the classes: a folder of others is a mistake.
        named = folder_for(geometry, init_dir, "--init-dir", classes_by) if init_dir else None
        return cls(geometry, list(geometry.classes or named.classes), ipc or NOISE_IPC, None, named=named)

    @classmethod
    def of_folder(
        cls, init_dir: str, geometry: Geometry, ipc: int | None, workers: int | None, classes_by: str = "name"
    ) -> Starts:
        """Raises UserError where the folder does not fit the teacher, or an image is damaged."""
        folder = folder_for(geometry, init_dir, "--init-dir", classes_by)
        advice = f"give at most --ipc {folder.fewest()}, or select with python -m ranking --short-classes repeat"
        uneven, kept = ipc is None and folder.fewest() < folder.most(), folder.manifest.kept_ipc
        if uneven and kept:
            raise UserError(
                f"--init-dir {init_dir}: was selected with --ipc {kept} --short-classes keep, and recover needs as "
                f"many images of each class; {advice}"
            )
        folder = folder.first(ipc or folder.fewest(), advice)
        folder.check(workers)
        if uneven:
            print(f"{init_dir}: takes the first {folder.fewest()} images of each class, as many as the smallest has")
        return cls(geometry, folder.classes, len(folder) // len(folder.classes), folder, folder.manifest.digests)

    @property
    def labelled(self) -> ImageFolder | None:
        """Images of --init-dir, by which a teacher can be judged; None without any."""
        return self.folder or self.named

    @property
    def members(self) -> list[Member]:
        return [(label, position) for label in range(len(self.classes)) for position in range(self.ipc)]

    @property
    def tile_side(self) -> int:
        """Tiles along a side of the starting images, where these are collages; else 1."""
        return self.folder.manifest.tile_side if self.folder else 1

    def identity(self) -> str:
        return self.folder.fingerprint(self.recorded) if self.folder else "noise"

    def path(self, member: Member) -> Path | None:
        """Of a member's starting image; None for noise."""
        return self.folder.root / self._name(member) if self.folder else None

    def output_name(self, member: Member, image_format: str) -> str:
        """class/POSITION_stem.format: sorting by name gives the position."""
        label, position = member
        stem = re.sub(r"^\d{3,}_", "", Path(self._name(member)).stem) if self.folder else "noise"
        name = shortened(f"{position:0{max(3, len(str(self.ipc - 1)))}d}_{stem}.{image_format}")
        return f"{self.classes[label]}/{name}"

    def images(self, unit: Unit, seed: int) -> torch.Tensor:
        """The unit's images at their start: normalised fp32 (N, 3, S, S).

        Raises UserError for one that cannot be read, or has changed since it was selected.
        """
        size = self.geometry.input_size
        if self.folder is None:
            noise = [torch.randn(3, size, size, generator=generator(seed, "noise", *m)) for m in unit.members]
            return torch.stack(noise)
        resize = resize_whole(size)
        batch = to_batch([resize(read_rgb(self._unchanged(member))) for member in unit.members])
        return self.geometry.normalise_pixels(batch / 255)

    def _unchanged(self, member: Member) -> Path:
        path, recorded = self.path(member), self.recorded.get(self._name(member))
        if recorded and path.is_file() and sha256(path) != recorded:
            raise UserError(
                f"{path}: has changed since it was selected; run ranking again, or remove the folder's "
                f"{MANIFEST} to take the images as they are"
            )
        return path

    def _name(self, member: Member) -> str:
        label, position = member
        return self.folder.paths[label * self.ipc + position]
