"""Batches of images, read and augmented in the order and by the random stream that the caller names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from utils import ranks
from utils.files import UserError
from utils.images import IN_MEMORY_BYTES, ImageFolder, resize_for_test, to_batch
from utils.runtime import generator, seeded


Geometry = Callable[[int], Callable[[Image.Image], Image.Image]]  # input size -> (image -> image of that size)


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
        """`epochs` passes, each in a random order of its own, but for the first `start` batches; of each this rank's share.

        uint8 (B, 3, S, S) and labels (B,). One stream for all passes, so that workers start once and read on from one
        pass to the next.
        """
        return self.batches(ranks.shares(self.passes(batch_size, epochs).keys(names, start)))

    def batches(self, keys: Iterable) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of `keys`, in their order, read ahead by the workers."""
        return iter(_load(self, keys, self.workers))

    def passes(self, batch_size: int, epochs: int) -> "Passes":
        return Passes(len(self.folder), batch_size, epochs)


@dataclass(frozen=True)
class Passes:
    """`epochs` passes over `images` in batches, counted over all passes from 0.

    A last batch of a single image is left out, BatchNorm has no variance for it.
    """

    images: int
    batch_size: int
    epochs: int

    @property
    def steps(self) -> int:
        """Batches of one pass."""
        whole, rest = divmod(self.images, self.batch_size)
        return whole + (rest > 1 or whole == 0)

    def size(self, number: int) -> int:
        """How many images batch `number` has."""
        return min(self.batch_size, self.images - number % self.steps * self.batch_size)

    def shown(self, number: int) -> int:
        """How many images the batches before batch `number` have."""
        whole, rest = divmod(number, self.steps)
        return whole * self.shown_in_pass + rest * self.batch_size

    @property
    def shown_in_pass(self) -> int:
        return min(self.images, self.steps * self.batch_size)

    def keys(self, names: tuple, start: int = 0, epochs: range | None = None) -> Iterator[tuple[tuple, list[int]]]:
        """(stream name, indices) of each batch, made as they are needed; but for the first `start` of these `epochs`."""
        epochs = range(self.epochs) if epochs is None else epochs
        whole, rest = divmod(start, self.steps)
        for epoch in epochs[whole:]:
            order = torch.randperm(self.images, generator=generator(*names, epoch)).split(self.batch_size)
            for step in range(rest if epoch == epochs[whole] else 0, self.steps):
                yield (*names, epoch, step), order[step].tolist()


class TestImages(Dataset):
    """An ImageFolder in the test geometry, or another, and in order; made once where memory allows.

    Ranks that work together have every world-size-th batch each.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(self, folder: ImageFolder, size: int, batch_size: int = 256, workers: int | None = None,
                 geometry: Geometry = resize_for_test, by_class: bool = False):
        """`by_class`: no batch holds images of two classes."""
        self.folder, self.geometry = folder, geometry(size)
        self.labels = torch.tensor(folder.labels)
        spans = [folder.span(label) for label in range(len(folder.classes))] if by_class else [range(len(folder))]
        self._keys = [span[start:start + batch_size] for span in spans
                      for start in range(0, len(span), batch_size)][ranks.rank()::ranks.world()]
        self._workers = _workers(folder, workers)
        self._fits = len(folder) * 3 * size * size <= IN_MEMORY_BYTES
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        """Batches."""
        return len(self._keys)

    def __getitem__(self, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
        images = to_batch([self.geometry(self.folder.read(index)) for index in indices])
        return images, self.labels[indices.start:indices.stop]

    def some(self, numbers: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of these numbers, in their order, read once and not kept."""
        return iter(_load(self, [self._keys[number] for number in numbers], self._workers))

    def of_class(self, label: int) -> list[int]:
        """The numbers of a class's batches, where they are by class."""
        span = self.folder.span(label)
        return [number for number, key in enumerate(self._keys) if key[0] in span]

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


def _load(source: Dataset, keys: Iterable, workers: int) -> Iterator[Any]:
    """What `source` has at `keys`. Raises UserError where an image cannot be read, or a worker was killed."""
    try:
        yield from DataLoader(source, sampler=keys, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())
    except UserError as error:
        # A worker's error comes with its traceback, whose last line is what it says.
        raise UserError(str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError("a process that reads images was killed, mostly for lack of memory or of shared memory (/dev/shm); "
                        f"give --workers {workers // 2}, and 0 needs none") from None
