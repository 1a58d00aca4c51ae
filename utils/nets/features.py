"""Penultimate features: what a network's last linear layer sees of an image."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Iterable, Iterator

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.data.images import resize_for_test
from utils.data.loader import EvalBatches, Images, Resize
from utils.run import distributed
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.memory import ask
from utils.run.progress import progress


def extractor(network: nn.Module, with_logits: bool = False) -> nn.Module:
    """What gives `network`'s penultimate features: images (B, 3, S, S) -> (B, D). `network` is changed in place.

    As `network` of what is given, prepared as that is, it still gives the logits alone.
    With `with_logits` its K logits stand behind them: (B, D + K). Of several heads, such as a distilled network's two,
    the features are what the last one sees. Raises UserError for a network without a linear layer.
    """
    return _Extractor(network, with_logits)


class _Extractor(nn.Module):
    """The network stays whole: what it does with its logits, such as the mean over two heads, would fail without."""

    def __init__(self, network: nn.Module, with_logits: bool):
        super().__init__()
        self.tap, self.network, self.with_logits = Tap.of(network), network, with_logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits, features = self.network(images), self.tap.take()
        return torch.cat([features, logits], 1) if self.with_logits else features


class Tap(nn.Module):
    """A network's last linear layer, which keeps what it sees until it is taken."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        self.features: torch.Tensor | None = None

    @classmethod
    def of(cls, network: nn.Module) -> Tap:
        """Of `network`, which is changed in place and still gives its logits. Raises UserError as `extractor` does."""
        name = _last_linear(network)
        tap = cls(network.get_submodule(name))
        network.set_submodule(name, tap)
        return tap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features = x.flatten(1)
        return self.linear(x)

    def take(self) -> torch.Tensor:
        """What the layer saw in the last forward pass (B, D); once, so that it is no result of a compiled step."""
        found, self.features = self.features, None
        return found


def _last_linear(network: nn.Module) -> str:
    """Its name."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            f"{type(network).__name__} has no linear layer, and so no penultimate features; take another network"
        )
    return linear[-1]


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of images, one class after the other; only one class is held at a time."""

    network: nn.Module  # of `extractor`, on the device
    geometry: Geometry
    runtime: Runtime
    batch_size: int = 256
    workers: int | None = None
    resize: Resize = resize_for_test
    may_split: bool = False  # batches that do not fit into memory

    @torch.inference_mode()
    def by_class(
        self, folder: Images, desc: str, labels: Iterable[int] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """(label, features (n, D) fp32 on the CPU) of each class of `labels`, asked for one by one; of all if None.

        A class's features do not depend on the other labels. Raises UserError where they are not all numbers.
        """
        size = self.geometry.input_size
        images = EvalBatches(folder, size, self.batch_size, self.workers, self.resize, by_class=True)
        network = self.runtime.compiled(self.network, len(images))
        pending: deque[tuple[int, int]] = deque()  # label and number of batches; workers read ahead

        def numbers() -> Iterator[int]:
            for label in range(len(folder.classes)) if labels is None else labels:
                own = images.of_class(label)
                pending.append((label, len(own)))
                yield from own

        held: list[torch.Tensor] = []  # of a class, on the device: what is fetched is waited for
        total = len(folder) // (1 if labels is None else distributed.rank_from_environment()[1])
        with progress(total=total, desc=desc, unit="img") as bar:
            for batch, _ in images.read(numbers()):
                found = ask(network, batch, self.geometry, self.runtime, self.may_split)
                held.append(found.float().flatten(1))
                bar.update(len(batch))
                label, batches = pending[0]
                if len(held) == batches:
                    pending.popleft()
                    yield label, self._joined(held, folder, label)
                    held = []

    def _joined(self, held: list[torch.Tensor], folder: Images, label: int) -> torch.Tensor:
        """A class's features on the CPU. Raises UserError where they are not all numbers."""
        features = torch.cat(held).cpu()
        self.runtime.require_numbers(features, "features", [folder.root / path for path in folder.of_class(label)])
        return features
