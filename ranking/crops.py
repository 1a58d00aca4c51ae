"""What a selection chooses among: all images of a class or some at random, whole or as random crops (RDED)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Mapping

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
from utils.run.cpus import available_cpus
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


def offered(job: Job, folder: ImageFolder, size: int) -> ImageFolder:
    """What is chosen among, as the teacher of `size` pixels sees it: images of `folder`, or crops of them."""
    patches = job.patches
    if job.scores_all:
        return folder
    images = candidates(folder, patches.candidates, job.seed)
    return Crops(images, patches.crops, max(size // patches.tiles, 1), job.seed) if patches.crops else images


class Crops(ImageFolder):
    """Square random crops of a folder's images, `count` of each, as images of `size` pixels.

    Crop k of image i is number i * count + k. Where it lies depends on the seed, the image's path and k, and on nothing
    else.
    """

    def __init__(self, folder: ImageFolder, count: int, size: int, seed: int):
        vars(self).update(vars(folder))
        self.folder, self.count, self.size, self.seed = folder, count, size, seed
        self.paths = [path for path in folder.paths for _ in range(count)]
        self.labels = [label for label in folder.labels for _ in range(count)]
        self._last: tuple[int, Image.Image, list[Box]] | None = None  # a batch asks for an image's crops in turn

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

    def fingerprint(self, recorded: Mapping[str, str] | None = None) -> str:
        return self.folder.fingerprint(recorded)

    def boxes(self, label: int) -> list[Box]:
        """Where each crop of a class lies in its image. Raises UserError for a file that is no image."""
        paths = self.folder.of_class(label)
        with ThreadPoolExecutor(available_cpus()) as pool:
            sizes = list(pool.map(size_of, [self.root / path for path in paths]))
        return [box for path, size in zip(paths, sizes) for box in self._draw(path, size)]

    def _draw(self, path: str, size: tuple[int, int]) -> list[Box]:
        shape = torch.empty(3, size[1], size[0], device="meta")
        with seeded(self.seed, "crops", path):
            return [
                tuple(map(int, RandomResizedCrop.get_params(shape, list(SCALE), [1.0, 1.0]))) for _ in range(self.count)
            ]


def tiles_of(images: ImageFolder, label: int) -> list[Tile]:
    """The images of a class, or its crops, in their order."""
    paths = images.of_class(label)
    return list(map(Tile, paths, images.boxes(label) if isinstance(images, Crops) else [None] * len(paths)))


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
