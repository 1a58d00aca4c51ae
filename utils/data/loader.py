"""Batches of images, read and augmented in the order and by the random stream that the caller names."""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Protocol, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from utils.data.image_folder import IN_MEMORY_BYTES, ImageFolder
from utils.data.images import resize_for_test, to_batch
from utils.run import distributed, threads
from utils.run.cpus import available_cpus
from utils.run.device import uses_gpu
from utils.run.errors import UserError
from utils.run.seeds import generator, seeded

THREADS_PER_WORKER = 4  # the process itself, two that send indices and images, and one that waits for its parent
NO_LEAKS = "ignore:resource_tracker"  # for PYTHONWARNINGS

Resize = Callable[[int], Callable[[Image.Image], Image.Image]]  # input size -> (image -> image of that size)


class Images(Protocol):
    """What batches are read from in order: an ImageFolder, or crops of its images."""

    root: Path
    classes: list[str]
    labels: list[int]  # rising

    @property
    def in_memory(self) -> bool: ...

    def __len__(self) -> int: ...

    def span(self, label: int) -> range: ...

    def of_class(self, label: int) -> list[str]: ...

    def read(self, index: int) -> Image.Image: ...


class AugmentedBatches(Dataset):
    """Augmented batches of an ImageFolder.

    The key of this map-style data set is (stream name, indices): a batch depends on nothing else, so it is the
    same whichever worker makes it.
    """

    def __init__(
        self, folder: ImageFolder, transform: Callable[[Image.Image], Image.Image], workers: int | None = None
    ):
        """`transform` maps one RGB image to one of the input size."""
        self.folder, self.transform = folder, transform
        self.labels = torch.tensor(folder.labels)
        self._asked = workers

    @property
    def workers(self) -> int:
        """Processes that read, as things are: whether the images are in memory may change."""
        return _workers(self.folder, self._asked)

    def __getitem__(self, key: tuple[tuple, Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        stream, indices = key
        with seeded(*stream):
            batch = to_batch([self.transform(self.folder.read(index)) for index in indices])
        return batch, self.labels[torch.as_tensor(indices)]

    def stream(
        self, batch_size: int, epochs: int, *names: object, start: int = 0
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """This rank's part of each batch of `epochs` epochs in random orders, without the first `start` batches.

        uint8 (B, 3, S, S) and labels (B,). One stream for all epochs, so that workers start once and read on from one
        epoch to the next.
        """
        return self.batches(distributed.local_batches(self.schedule(batch_size, epochs).keys(names, start)))

    def batches(self, keys: Iterable) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of `keys`, in their order, read ahead by the workers."""
        return iter(_load(self, keys, self.workers))

    def schedule(self, batch_size: int, epochs: int) -> "BatchSchedule":
        return BatchSchedule(len(self.folder), batch_size, epochs)


@dataclass(frozen=True)
class BatchSchedule:
    """Shuffled batches of `images` over `epochs`, numbered over all epochs from 0.

    A last batch of a single image is left out, BatchNorm has no variance for it.
    """

    images: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.images, self.batch_size)
        return whole + (rest > 1 or whole == 0)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def images_per_epoch(self) -> int:
        return min(self.images, self.steps_per_epoch * self.batch_size)

    def size(self, number: int) -> int:
        """How many images batch `number` has."""
        return min(self.batch_size, self.images - number % self.steps_per_epoch * self.batch_size)

    def images_before(self, number: int) -> int:
        """How many images the batches before batch `number` have."""
        whole, rest = divmod(number, self.steps_per_epoch)
        return whole * self.images_per_epoch + rest * self.batch_size

    def keys(self, names: tuple, start: int = 0, epochs: range | None = None) -> Iterator[tuple[tuple, list[int]]]:
        """(stream name, indices) of each batch of these `epochs`, drawn as needed, without the first `start`."""
        epochs = range(self.epochs) if epochs is None else epochs
        whole, rest = divmod(start, self.steps_per_epoch)
        for epoch in epochs[whole:]:
            order = torch.randperm(self.images, generator=generator(*names, epoch)).split(self.batch_size)
            for step in range(rest if epoch == epochs[whole] else 0, self.steps_per_epoch):
                yield (*names, epoch, step), order[step].tolist()


class EvalBatches(Dataset):
    """Images resized for testing, or otherwise, and in order; kept where memory allows.

    Ranks that work together have every world-size-th batch each.
    """

    def __init__(
        self,
        folder: Images,
        size: int,
        batch_size: int = 256,
        workers: int | None = None,
        resize: Resize = resize_for_test,
        by_class: bool = False,
    ):
        """`by_class`: no batch holds images of two classes."""
        self.folder, self.resize = folder, resize(size)
        self.labels = torch.tensor(folder.labels)
        spans = [folder.span(label) for label in range(len(folder.classes))] if by_class else [range(len(folder))]
        self._keys = [span[start : start + batch_size] for span in spans for start in range(0, len(span), batch_size)][
            distributed.get_rank() :: distributed.get_world_size()
        ]
        self._asked = workers
        self._fits = len(folder) * 3 * size * size <= IN_MEMORY_BYTES
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __len__(self) -> int:
        """Batches."""
        return len(self._keys)

    def __getitem__(self, indices: range) -> tuple[torch.Tensor, torch.Tensor]:
        images = to_batch([self.resize(self.folder.read(index)) for index in indices])
        return images, self.labels[indices.start : indices.stop]

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of these numbers, in their order, read once and not kept. Workers ask for numbers ahead."""
        return iter(_load(self, (self._keys[number] for number in numbers), _workers(self.folder, self._asked)))

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
        for batch in _load(self, self._keys, _workers(self.folder, self._asked)):
            if self._fits:
                batch = tuple(map(own_memory, batch))
                self._kept.append(batch)
            yield batch


def own_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor to keep. What a worker sent lies in shared memory, and holds a file descriptor as long as it lives."""
    return tensor.clone() if tensor.is_shared() else tensor


def _workers(folder: Images, asked: int | None) -> int:
    """Worker processes: as many as asked; else none where the images are in memory and the CPU computes anyway."""
    if asked is not None:
        return asked
    return 0 if folder.in_memory and not uses_gpu() else min(8, available_cpus())


def _context() -> str | None:
    """How workers start. The threads of a rank's connections do not survive a fork, and one may wait in it for ever.

    Such ranks have their workers forked by a server that has no threads (torch.distributed's advice for Gloo and NCCL).
    """
    if distributed.get_world_size() == 1:
        return None
    multiprocessing.set_forkserver_preload([__name__])
    # What a killed rank leaves is removed by a process of multiprocessing's own, which would warn of it.
    said = os.environ.get("PYTHONWARNINGS", "").split(",")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, dict.fromkeys([*said, NO_LEAKS])))
    return "forkserver"


def _end_when_useless(number: int) -> None:
    """End this worker when the process dies that it works for, or where a batch cannot be sent to it.

    PyTorch would see another parent's number; but a worker's parent is the server, which lives as long as the workers.
    A batch that finds no room in shared memory would be lost in the thread that sends it, and waited for without end.
    """

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lambda error, batch: os._exit(1))


def _load(source: Dataset, keys: Iterable, workers: int) -> Iterator[Any]:
    """What `source` has at `keys`.

    Raises UserError where an image cannot be read, workers cannot be started, or one was killed.
    """
    try:
        threads.require(THREADS_PER_WORKER * workers)
        yield from DataLoader(
            source,
            sampler=keys,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_end_when_useless,
            pin_memory=uses_gpu(),
        )
    except UserError as error:
        # Its traceback is in a circle with the loader, whose workers would wait for the garbage collector.
        error.__traceback__ = None
        # A worker's error comes with the worker's traceback, whose last line is what it says.
        raise UserError(
            str(error).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
        ) from None
    except (RuntimeError, OSError) as error:
        # For the queues of the workers: where a disk is full, in what gives the keys, the error names a file.
        no_room = isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
        if not (no_room or "DataLoader worker" in str(error)):
            raise
        ended = "was killed, mostly for lack of memory or of shared memory (/dev/shm)"
        raise UserError(
            f"a process that reads images {'finds no room in /dev/shm' if no_room else ended}; give --workers "
            f"{workers // 2}, and 0 needs none"
        ) from None
