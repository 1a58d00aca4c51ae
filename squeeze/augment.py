"""The views that a teacher is trained on: crops and flips, of images that are in memory all at once on the device."""

from __future__ import annotations

from typing import Iterable, Iterator

import torch
from torch.nn.functional import pad
from torchvision.transforms import v2

from utils.data.datasets import SMALL_SIZE
from utils.data.image_folder import IN_MEMORY_BYTES, ImageFolder
from utils.data.images import resize_whole, to_batch
from utils.data.loader import AugmentedBatches
from utils.run.device import transfer
from utils.run.seeds import seeded

CHUNK = 1024  # images that are put together before they are sent to the device


def augmentation(size: int, crop_padding: int) -> v2.Transform:
    """RGB image -> RGB image of `size` pixels: padded crop for small ones, RandomResizedCrop above; then flip."""
    if size <= SMALL_SIZE:
        crop = [resize_whole(size), v2.RandomCrop(size, padding=crop_padding)]
    else:
        crop = [v2.RandomResizedCrop(size)]
    return v2.Compose([*crop, v2.RandomHorizontalFlip()])


def batches_of(
    folder: ImageFolder, size: int, crop_padding: int, device: torch.device, workers: int | None = None
) -> AugmentedBatches:
    """Batches of the folder's images in these views, the same bytes whichever way they are made.

    Small images that are decoded in memory are cropped on the device, unless `workers` are asked for; others by them,
    one by one.
    """
    fits = size <= SMALL_SIZE and len(folder) * 3 * size * size <= IN_MEMORY_BYTES
    if fits and folder.in_memory and not workers:
        return CroppedBatches(folder, size, crop_padding, device)
    return AugmentedBatches(folder, augmentation(size, crop_padding), workers)


class CroppedBatches(AugmentedBatches):
    """AugmentedBatches of small images, which are resized once, and padded, cropped and flipped a batch at a time.

    What is drawn for an image, and in which order, is what `augmentation` draws. Memory: 3 bytes a pixel on the device.
    """

    def __init__(self, folder: ImageFolder, size: int, crop_padding: int, device: torch.device):
        super().__init__(folder, augmentation(size, crop_padding), workers=0)
        self.size, self.padding, self.device = size, crop_padding, device
        resize = resize_whole(size)
        self.images = torch.empty(len(folder), size, size, 3, dtype=torch.uint8, device=device)
        for start in range(0, len(folder), CHUNK):
            images = [resize(folder.read(index)) for index in range(start, min(start + CHUNK, len(folder)))]
            self.images[start : start + len(images)].copy_(to_batch(images).permute(0, 2, 3, 1))
        self.labels = self.labels.to(device)

    def __getitem__(self, key: tuple[tuple, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, 3, S, S), channels_last, and labels (B,), on the device."""
        stream, indices = key
        with seeded(*stream):
            drawn = torch.tensor([[index, *self._draw()] for index in indices])
        index, top, left, flip = transfer(drawn.T.contiguous(), self.device)
        along = torch.arange(self.size, device=self.device)
        rows = top[:, None] + along
        columns = left[:, None] + torch.where(flip[:, None] == 1, self.size - 1 - along, along)
        images = pad(self.images[index], (0, 0, *(self.padding,) * 4))
        batch = torch.arange(len(indices), device=self.device)[:, None, None]
        return images[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), self.labels[index]

    def batches(self, keys: Iterable) -> Iterator[tuple[torch.Tensor, ...]]:
        return (self[key] for key in keys)

    def _draw(self) -> tuple[int, int, int]:
        """Top, left and flip of a view, from torch's global generator."""
        top, left = (int(torch.randint(0, 2 * self.padding + 1, ())) if self.padding else 0 for _ in range(2))
        return top, left, int(torch.rand(1) < 0.5)
