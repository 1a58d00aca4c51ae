"""The real images that the tiles of collages stand for, found by the manifest of the collages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from recover.starts import Starts
from recover.units import Member, Unit
from utils.data.images import read_rgb, to_batch
from utils.data.tiles import Tile, cut, of_collages
from utils.run.errors import UserError
from utils.run.files import digest, sha256


@dataclass(frozen=True)
class Originals:
    """Of each starting image its tiles, of images in `train_dir`."""

    starts: Starts
    train_dir: Path
    tiles: dict[Member, list[Tile]]

    @classmethod
    def of(cls, starts: Starts) -> Originals:
        """Raises UserError where the starts are no collages, all of n x n tiles, or an original is not there."""
        if starts.folder is None:
            raise UserError("the method compares collages with their originals: give them as --init-dir, not noise")
        root = starts.folder.root
        train_dir, known = of_collages(root)
        found = {}
        for member in starts.members:
            name = starts.path(member).relative_to(root).as_posix()
            if name not in known:
                raise UserError(f"{root}: its manifest names no tiles of {name}; make the collages with ranking again")
            found[member] = known[name]
        counts = {len(own) for own in found.values()}
        if len(counts) > 1 or math.isqrt(min(counts)) ** 2 != min(counts):
            raise UserError(
                f"{root}: its collages have {sorted(counts)} tiles; all need the same square number of them"
            )
        for path in sorted({tile.path for own in found.values() for tile in own}):
            if not (train_dir / path).is_file():
                raise UserError(
                    f"{root}: the original {train_dir / path} of one of its tiles is not there; put {train_dir} back, "
                    "or make the collages with ranking again"
                )
        return cls(starts, train_dir, found)

    @property
    def count(self) -> int:
        """Tiles of each collage."""
        return len(next(iter(self.tiles.values())))

    def identity(self) -> str:
        return digest([[tile.plain for tile in self.tiles[member]] for member in self.starts.members])

    def images(self, unit: Unit) -> torch.Tensor:
        """Of each of the unit's images the originals, at its size: normalised fp32 (N, tiles, 3, S, S).

        Raises UserError for one that cannot be read, or has changed since the collage was made.
        """
        size = self.starts.geometry.input_size
        shown = [cut(read_rgb(self._unchanged(tile)), tile.box, size) for m in unit.members for tile in self.tiles[m]]
        pixels = to_batch(shown).unflatten(0, (len(unit.members), self.count))
        return self.starts.geometry.normalise_pixels(pixels / 255)

    def _unchanged(self, tile: Tile) -> Path:
        path = self.train_dir / tile.path
        if tile.sha256 and path.is_file() and sha256(path) != tile.sha256:
            raise UserError(f"{path}: has changed since collages were made of it; run ranking again")
        return path
