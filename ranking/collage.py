"""Collages: output images put together of tiles, which are images or crops of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from utils.data.images import read_rgb, save_image, to_batch
from utils.data.tiles import Tile, cut, edges
from utils.run import many_files
from utils.run.files import sha256, shortened
from utils.run.progress import progress


@dataclass(frozen=True)
class Collages:
    """The collages of a selection: `size` pixels, `tiles` tiles along a side, of images in `train_dir`."""

    train_dir: Path
    size: int
    tiles: int

    def write(
        self, chosen: dict[str, list[Tile]], output_dir: Path, known: dict[str, tuple[str, list[dict]]]
    ) -> tuple[int, dict[str, str], dict[str, list[dict]]]:
        """Write each class's collages to output_dir/class/POSITION_name.png, name being that of the first tile.

        Those that are there stay if their SHA-256 and their tiles are the `known` ones of their path: a name alone does
        not say of which originals they are. Returns how many were written, and of each by its path in `output_dir` its
        SHA-256 and its tiles as JSON has them, with the SHA-256 of their files. The caller flushes them.
        """
        wanted = {}
        for name, ordered in chosen.items():
            groups = arranged(ordered, self.tiles**2)
            width = max(3, len(str(len(groups) - 1)))
            for position, tiles in enumerate(groups):
                file = shortened(f"{position:0{width}d}_{Path(tiles[0].path).stem}.png")
                wanted[f"{name}/{file}"] = tiles
            (output_dir / name).mkdir(exist_ok=True)

        def write(path: str) -> tuple[bool, str, list[dict]]:
            target = output_dir / path
            tiles = [replace(tile, sha256=sha256(self.train_dir / tile.path)).plain for tile in wanted[path]]
            anew = not (target.is_file() and (sha256(target), tiles) == known.get(path))
            if anew:
                save_image(target, self.compose(wanted[path]))
            return anew, sha256(target), tiles

        with progress(total=len(wanted), desc="collages", unit="img", delay=2) as bar:
            written, digests, sources = 0, {}, {}
            for path, [(anew, found, tiles)] in zip(wanted, many_files.each(write, list(wanted))):
                written += anew
                digests[path], sources[path] = found, tiles
                bar.update(1)
        return written, digests, sources

    def compose(self, tiles: Sequence[Tile]) -> torch.Tensor:
        """uint8 (3, size, size): the tiles row by row, each resized by its nearest pixels (RDED's code).

        Pixels that are left over belong to the first rows and columns. Raises UserError for a damaged image.
        """
        lengths, rows = edges(self.size, self.tiles), []
        for row, height in enumerate(lengths):
            own = tiles[row * self.tiles : (row + 1) * self.tiles]
            parts = [interpolate(self._pixels(tile), (height, width)) for tile, width in zip(own, lengths)]
            rows.append(torch.cat(parts, dim=3))
        return torch.cat(rows, dim=2)[0]

    def _pixels(self, tile: Tile) -> torch.Tensor:
        """uint8 (1, 3, s, s): a crop at the size at which it was scored, an image at the full size."""
        image = read_rgb(self.train_dir / tile.path)
        return to_batch([cut(image, tile.box, self.size // self.tiles if tile.box else self.size)])


def arranged(ordered: Sequence[Tile], tiles: int) -> list[list[Tile]]:
    """Place k * images + j is tile k of image j, with as many images as `tiles` tiles each are there for.

    Where there are not even enough for one, they are repeated in their order.
    """
    images = max(len(ordered) // tiles, 1)
    ordered = [ordered[place % len(ordered)] for place in range(images * tiles)]
    return [ordered[number::images] for number in range(images)]
