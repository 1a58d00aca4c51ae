"""Batches of images, read and augmented in the order and by the random stream that the caller names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from utils.images import IN_MEMORY_BYTES, ImageFolder, resize_for_test, to_batch
from utils.runtime import generator, seeded


class Batches(Dataset):
    """Augmented batches of an ImageFolder.

    The key of this map-style data set is (stream name, indices): a batch depends on nothing else, so it is the
    same whichever worker makes it.
    """

    def __init__(self, folder: ImageFolder, transform: Callable[[Image.Image], Image.Image], workers: int | None = None):
        """`transform` maps one RGB image to one of the input size."""
        self.folder, self.transform = folder, transform
        self.labels = torch.tensor(folder.labels)
        self.workers = _workers(folder, workers)

    def __getitem__(self, key: tuple[tuple, Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        stream, indices = key
        with seeded(*stream):
            batch = to_batch([self.transform(self.folder.read(index)) for index in indices])
        return batch, self.labels[torch.as_tensor(indices)]

    def stream(self, batch_size: int, epochs: int, *names: object, start: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
        """`epochs` passes, each in a random order of its own: uint8 (B, 3, S, S) and labels (B,), B images at most.

        The first `start` batches are left out. A pass has `steps` batches: a last batch of a single image is left out, BatchNorm has no variance for it. One
        stream for all passes, so that workers start once and read on from one pass to the next.
        """
        return self.batches(Keys(len(self.folder), batch_size, range(epochs), self.steps(batch_size), names, start))

    def batches(self, keys: Iterable) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of `keys`, in their order, read ahead by the workers."""
        return iter(_load(self, keys, self.workers))

    def images(self, steps: int, batch_size: int) -> int:
        """How many images the first `steps` batches of a stream show."""
        whole, rest = divmod(steps, self.steps(batch_size))
        return whole * len(self.folder) + rest * batch_size

    def steps(self, batch_size: int) -> int:
        whole, rest = divmod(len(self.folder), batch_size)
        return whole + (rest > 1 or whole == 0)


@dataclass(frozen=True)
class Keys:
    """The keys of a stream, made as they are needed."""

    images: int
    batch_size: int
    epochs: range
    steps: int
    names: tuple
    start: int = 0  # so many batches are left out

    def __iter__(self) -> Iterator[tuple[tuple, list[int]]]:
        whole, rest = divmod(self.start, self.steps)
        for epoch in self.epochs[whole:]:
            order = torch.randperm(self.images, generator=generator(*self.names, epoch)).split(self.batch_size)
            for step in range(rest if epoch == self.epochs[whole] else 0, self.steps):
                yield (*self.names, epoch, step), order[step].tolist()


class TestImages(Dataset):
    """An ImageFolder in the test geometry, or another, and in order; made once where memory allows."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, folder: ImageFolder, size: int, batch_size: int = 256, workers: int | None = None,
                 geometry: Callable[[int], Callable[[Image.Image], Image.Image]] = resize_for_test):
        self.folder, self.geometry = folder, geometry(size)
        self.labels = torch.tensor(folder.labels)
        starts = range(0, len(folder), batch_size)
        self._keys = [range(start, min(start + batch_size, len(folder))) for start in starts]
        self._workers = _workers(folder, workers)
        self._fits = len(folder) * 3 * size * size <= IN_MEMORY_BYTES
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        """Batches."""
        return len(self._keys)

    def __getitem__(self, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
        images = to_batch([self.geometry(self.folder.read(index)) for index in indices])
        return images, self.labels[indices.start:indices.stop]

    def rest(self, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches but for the first `start`, read once."""
        return iter(_load(self, self._keys[start:], self._workers))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """uint8 (B, 3, S, S) and labels (B,)."""
        if len(self._kept) == len(self._keys):
            yield from self._kept
            return
        self._kept = []
        for batch in _load(self, self._keys, self._workers):
            if self._fits:
                self._kept.append(batch)
            yield batch


def _workers(folder: ImageFolder, asked: int | None) -> int:
    """Worker processes: what was asked; else none where the images are in memory and the processors compute anyway."""
    if asked is not None:
        return asked
    return 0 if folder.in_memory and not torch.cuda.is_available() else min(8, os.cpu_count() or 1)


def _load(source: Dataset, keys: Iterable, workers: int) -> DataLoader:
    return DataLoader(source, sampler=keys, batch_size=None, num_workers=workers,
                      pin_memory=torch.cuda.is_available())
