"""What a selection chooses among: all images of a class or some at random, whole or as random crops (RDED)."""

from __future__ import annotations

from itertools import chain
from typing import Callable

import pandas as pd
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import RandomResizedCrop

from ranking.flags import Job
from utils.data.image_folder import ImageFolder
from utils.data.images import resize_for_test, size_of
from utils.data.loader import Resize
from utils.data.tiles import Box, Tile, cut
from utils.run import many_files
from utils.run.seeds import generator, seeded

SCALE = (0.08, 1.0)  # share of the image in a crop, as torchvision's default, which RDED's code takes
BOX = ["top", "left", "height", "width"]


def candidates(folder: ImageFolder, count: int | None, seed: int) -> ImageFolder:
    """`count` images of each class at random; of a class with fewer, and for None, all."""
    if count is None:
        return folder
    chosen = []
    for label, name in enumerate(folder.classes):
        span = folder.span(label)
        order = torch.randperm(len(span), generator=generator(seed, "candidates", name)).tolist()
        chosen += sorted(span[place] for place in order[:count])
    return folder.taking(chosen)


class Crops:
    """Square random crops of a folder's images, `count` of each, as images of `size` pixels; read as a folder is.

    Crop k of image i is number i * count + k. Where it lies depends on the seed, the image's path and k, and on nothing
    else.
    """

    def __init__(self, folder: ImageFolder, count: int, size: int, seed: int):
        self.folder, self.count, self.size, self.seed = folder, count, size, seed
        self.root, self.role, self.classes = folder.root, folder.role, folder.classes
        self.paths = [path for path in folder.paths for _ in range(count)]
        self.labels = [label for label in folder.labels for _ in range(count)]
        self._last: tuple[int, Image.Image, list[Box]] | None = None  # a batch asks for an image's crops in turn

    def __len__(self) -> int:
        return len(self.paths)

    def span(self, label: int) -> range:
        """Where the crops of a class stand."""
        images = self.folder.span(label)
        return range(images.start * self.count, images.stop * self.count)

    def of_class(self, label: int) -> list[str]:
        """The image of each of a class's crops."""
        span = self.span(label)
        return self.paths[span.start : span.stop]

    @property
    def in_memory(self) -> bool:
        return self.folder.in_memory

    def read(self, index: int) -> Image.Image:
        """Crop `index`, RGB of `size` pixels. Raises UserError if its image is damaged."""
        number, crop = divmod(index, self.count)
        if self._last is None or self._last[0] != number:
            image = self.folder.read(number)
            self._last = number, image, self._draw(self.folder.paths[number], image.size)
        _, image, boxes = self._last
        return cut(image, boxes[crop], self.size)

    def check(self, workers: int | None = None) -> None:
        self.folder.check(workers)

    def tiles(self, label: int) -> list[Tile]:
        """A class's crops in their order. Raises UserError for a file that is no image."""
        return list(map(Tile, self.of_class(label), self.boxes(label)))

    def boxes(self, label: int) -> list[Box]:
        """Where each crop of a class lies in its image. Raises UserError for a file that is no image."""
        paths = self.folder.of_class(label)
        sizes = chain(*many_files.each(size_of, [self.root / path for path in paths]))
        return [box for path, size in zip(paths, sizes) for box in self._draw(path, size)]

    def _draw(self, path: str, size: tuple[int, int]) -> list[Box]:
        shape = torch.empty(3, size[1], size[0], device="meta")
        with seeded(self.seed, "crops", path):
            return [
                tuple(map(int, RandomResizedCrop.get_params(shape, list(SCALE), [1.0, 1.0]))) for _ in range(self.count)
            ]


Offered = ImageFolder | Crops


def offered(job: Job, folder: ImageFolder, size: int) -> Offered:
    """What is chosen among, as the teacher of `size` pixels sees it: images of `folder`, or crops of them."""
    patches = job.patches
    if job.scores_all:
        return folder
    images = candidates(folder, patches.candidates, job.seed)
    return Crops(images, patches.crops, max(size // patches.tiles, 1), job.seed) if patches.crops else images


def as_they_are(size: int) -> Callable[[Image.Image], Image.Image]:
    """The resize of batches of crops, which have their size."""
    return _itself


def _itself(image: Image.Image) -> Image.Image:
    """By name: the processes that load images get it pickled where they are not forked."""
    return image


class Centred(nn.Module):
    """`network` that sees a normalised crop in the centre of zeros: images (N, 3, s, s), padded to `size` pixels.

    A crop that becomes a tile is judged at the size that it has there. RDED's code pads in this way, after the
    normalisation.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        room = self.size - images.shape[-1]
        before, after = room // 2, room - room // 2
        return self.network(nn.functional.pad(images, (before, after, before, after)))


def shown(job: Job, network: nn.Module, size: int) -> tuple[nn.Module, Resize]:
    """The network as it sees what is offered, and how that is resized for it."""
    return (Centred(network, size), as_they_are) if job.patches.crops else (network, resize_for_test)


def best(rows: pd.DataFrame, needed: int) -> pd.DataFrame:
    """Of one class's crops the highest scored of each image, in the order that they have.

    Where the images are fewer than `needed`, ceil(needed / images) of each. Equal scores: the one that comes first.
    """
    images = rows["img_path"].nunique()
    kept = -(-needed // images)
    ranked = rows.sort_values("score", ascending=False, kind="stable")
    return ranked.groupby("img_path").head(kept).sort_index()
