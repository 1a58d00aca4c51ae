"""The batches that a student sees: drawn anew, or shown again as they were recorded."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Iterable, Iterator

import torch

from utils.data import dsa
from utils.data.geometry import Geometry
from utils.data.loader import BatchSchedule
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.seeds import seeded
from validate import augment
from validate.augment import Views
from validate.protocols import Protocol


@dataclass
class Step:
    """One mixed batch, on the device, and everything that was drawn for it."""

    images: torch.Tensor  # (B, 3, S, S) normalised
    labels: torch.Tensor  # (B,), the class of each image before mixing
    shares: torch.Tensor  # (B, classes) of the classes after mixing
    order: torch.Tensor  # (B,) which images of the set
    views: torch.Tensor  # (B, 5) as Augmentation.draw has them
    mix: torch.Tensor  # (5,) as draw_mix has it
    batch_size: int  # of all ranks together
    batch_order: torch.Tensor | None = None  # of a part: `order` of the whole

    def subset(self, own: list[int] | slice) -> Step:
        """Some of its images, by their numbers or a slice."""

        def of(tensor: torch.Tensor) -> torch.Tensor:
            # Where the numbers are not on the tensor's device, the host waits for it.
            return tensor[own] if isinstance(own, slice) else tensor[transfer(torch.tensor(own), tensor.device)]

        parts = ("images", "labels", "shares", "order", "views")
        return replace(self, **{name: of(getattr(self, name)) for name in parts})

    def part(self, span: slice) -> Step:
        """What one forward pass of a step takes of it."""
        return replace(self.subset(span), batch_order=self.order)


def spans(images: int, count: int) -> list[slice]:
    """A batch in `count` parts in their order, as even as can be: the first ones take the remainder.

    In fewer parts where one would have a single image, of which BatchNorm has no variance.
    """
    count = max(1, min(count, images // distributed.MIN_LOCAL_BATCH))
    size, rest = divmod(images, count)
    starts = [part * size + min(part, rest) for part in range(count + 1)]
    return [slice(*span) for span in zip(starts, starts[1:])]


@dataclass(frozen=True)
class Stream:
    """The batches of one student: the same for every architecture, and whoever labels them."""

    views: Views
    protocol: Protocol
    seed: int
    geometry: Geometry
    runtime: Runtime

    @property
    def schedule(self) -> BatchSchedule:
        return self.views.schedule(self.protocol.batch_size, self.protocol.epochs)

    def keys(self, epochs: range, start: int = 0) -> Iterator[tuple[tuple, list[int]]]:
        return self.schedule.keys((self.seed, "student"), start, epochs)

    def draw(self, epochs: range, start: int = 0, local: bool = True) -> Iterator[Step]:
        """The batches of these epochs, freshly drawn, without the first `start`; `local`: of each this rank's part."""
        return self.drawn(self.keys(epochs, start), local)

    def drawn(self, keys: Iterable[tuple[tuple, list[int]]], local: bool = True) -> Iterator[Step]:
        """`draw` for these `keys`."""
        own = ("rank", distributed.get_rank()) if local and distributed.get_world_size() > 1 else ()
        for batch, (*_, epoch, step) in self._read(((key, key[0]) for key in keys), local):
            images = batch[0]
            with seeded(self.seed, "mix", epoch, step, *own):
                mix = augment.draw_mix(self.protocol.mix, len(images), images.shape[-1])
            yield self._step(batch, mix, (epoch, step, self.schedule.size(step)), local)

    def replay(self, recorded: Iterable[tuple[tuple, torch.Tensor, Any]]) -> Iterator[tuple[Step, Any]]:
        """Recorded batches, mixed as recorded: of each (key, mix, more) the step of the key and mix, and `more`.

        A key is (stream, order, views).
        """
        asked = ((key, (key[0], mix, more)) for key, mix, more in recorded)
        for batch, ((*_, epoch, step), mix, more) in self._read(asked, local=False):
            yield self._step(batch, mix, (epoch, step, len(batch[0])), local=False), more

    def _read(self, asked: Iterable[tuple[tuple, Any]], local: bool) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
        """The batch of each key, and what stands beside the key."""
        beside: deque[Any] = deque()  # of the batches to come; workers read ahead

        def keys() -> Iterator[tuple]:
            for key, more in asked:
                beside.append(more)
                yield key

        for batch in self.views.batches(distributed.local_batches(keys()) if local else keys()):
            yield batch, beside.popleft()

    def _step(
        self, batch: tuple[torch.Tensor, ...], mix: torch.Tensor, where: tuple[int, int, int], local: bool
    ) -> Step:
        """`where`: the epoch, the step in it, and how many images its batch has, of which this rank's if `local`."""
        images, labels, order, views = batch
        device, batch_size = self.runtime.device, where[-1]
        labels = transfer(labels, device)
        images = self.geometry.normalise(images, device)
        if self.protocol.batch_augment == "dsa":
            kind, draws = dsa.draw(batch_size, self.seed, "dsa", *where[:2])
            own = distributed.local_batch(range(batch_size)) if local else list(range(batch_size))
            images = dsa.KINDS[kind](images, transfer(draws[own], device))
            images = images.contiguous(memory_format=torch.channels_last)
        mixed, shares = augment.mix(images, labels, mix, self.geometry.num_classes)
        return Step(mixed, labels, shares, order, views, mix, batch_size)
