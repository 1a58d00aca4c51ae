"""One pass of images through a network, and what its convolutions and BatchNorms get of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import nn

from utils.nets import class_order
from utils.nets.moments import channel_moments, image_moments, moments
from utils.nets.statistics import BATCHNORM, CONVOLUTION, PARTS, Layer
from utils.run.errors import UserError


@dataclass(frozen=True)
class What:
    """What is collected."""

    patch: int  # pixels
    per_class: bool  # of BatchNorms too; of all images their running averages serve

    def has(self, kind: str) -> bool:
        return kind == CONVOLUTION or self.per_class


class Measured(nn.Module):
    """A network that says what its layers get, all layers' numbers in one row.

    images (b, 3, S, S) normalised -> logits (b, K), and the numbers (F,) of the batch or, for classes, those of each
    image (b, F): of one layer after the other its parts of PARTS.
    """

    def __init__(self, network: nn.Module, kinds: dict[str, str], what: What):
        """`kinds` as `measurable` gives them. The network is on its device and prepared: hooks come last."""
        super().__init__()
        self.network, self.kinds, self.what = network, kinds, what
        self.found: dict[str, tuple[torch.Tensor, ...]] = {}
        for name, kind in kinds.items():
            if what.has(kind):
                network.get_submodule(name).register_forward_pre_hook(self._hook(name, kind))

    def _hook(self, name: str, kind: str):
        patch = self.what.patch if kind == CONVOLUTION else None

        def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self.what.per_class:
                self.found[name] = image_moments(inputs[0], patch)
            else:
                self.found[name] = channel_moments(inputs[0]) if patch is None else moments(inputs[0], patch)

        return measure

    @torch.no_grad()
    def layers(self, images: torch.Tensor) -> list[Layer]:
        """The layers that are called, whether they are measured or not, by the way of a few images.

        Raises UserError where those of classes are asked for, and a layer gets other maps than one of each image.
        """
        called: dict[nn.Module, int] = {}  # how many maps each gets

        def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            called[layer] = len(inputs[0])

        modules = {name: self.network.get_submodule(name) for name in self.kinds}
        hooks = [module.register_forward_pre_hook(note) for module in modules.values()]
        self.found.clear()
        self.network(images)
        for hook in hooks:
            hook.remove()
        for name, module in modules.items():
            if self.what.per_class and called.get(module, len(images)) != len(images):
                raise UserError(
                    f"--per-class: the network's layer {name} gets {called[module]} maps of {len(images)} images, such "
                    "as windows or heads, and no class's own; leave --per-class out, or give another teacher"
                )
        return [
            Layer(name, kind, self.found[name][0].shape[-1], self.found[name][2].shape[-1])
            if kind == CONVOLUTION
            else Layer(name, kind, modules[name].num_features, 0)
            for name, kind in self.kinds.items()
            if modules[name] in called
        ]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.found.clear()
        logits = self.network(images)
        row = torch.cat([part.float() for name in self.kinds if name in self.found for part in self.found[name]], -1)
        self.found.clear()
        return logits, row


class Totals:
    """The sums over batches, in float64 on the device."""

    def __init__(self, layers: Sequence[Layer], what: What, images: int, num_classes: int, device: torch.device):
        """`layers`: all that are called; what is not measured has no sums."""
        self.layers, self.what, self.images = layers, what, images
        layers = [layer for layer in layers if what.has(layer.kind)]
        names = [(layer, part) for layer in layers for part in PARTS[layer.kind]]
        sizes = [layer.patches if part.startswith("patch") else layer.channels for layer, part in names]
        columns = torch.arange(sum(sizes)).split(sizes)
        self.columns = {(layer.name, part): span for (layer, part), span in zip(names, columns)}

        def of(*wanted: str) -> torch.Tensor:
            return torch.cat([span for (_, part), span in zip(names, columns) if part in wanted]).to(device)

        self.means, self.vars = of("mean", "patch_mean"), of("var", "patch_var")  # in the same order
        norms = [self.columns[layer.name, "mean"] for layer in layers if layer.kind == BATCHNORM]
        self.norms = torch.cat([torch.arange(0), *norms]).to(device)
        zeros = {"dtype": torch.float64, "device": device}
        self.total = torch.zeros(len(self.means) + len(self.vars), **zeros)
        classes = num_classes if what.per_class else 0
        self.class_sums = torch.zeros(classes, len(self.total), **zeros)
        self.class_squares = torch.zeros(classes, len(self.norms), **zeros)  # of the means of BatchNorms' inputs
        self.class_images = torch.zeros(classes, **zeros)
        self.answers = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)  # counts of Answers

    def add(self, row: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> None:
        """A batch: what Measured says of it, the labels (b,) and the network's own (b,), on the device."""
        row = row.double()
        class_order.count(self.answers, labels, predicted)
        if self.what.per_class:
            self.class_sums.index_add_(0, labels, row)
            self.class_squares.index_add_(0, labels, row[:, self.norms].square())
            self.class_images.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
            row = self._of_batch(row)
        self.total += row * (len(labels) / self.images)

    def _of_batch(self, rows: torch.Tensor) -> torch.Tensor:
        """(b, F) of images -> (F,) of the batch: its variance is the mean of theirs and the variance of their means."""
        found = rows.mean(0)
        found[self.vars] += rows[:, self.means].var(0, correction=0)
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the statistics file holds, fp32."""
        found = {}
        means = self.class_sums / self.class_images[:, None]
        between = torch.zeros_like(means)  # the variance of images' means within a class
        between[:, self.norms] = self.class_squares / self.class_images[:, None] - means[:, self.norms].square()
        kinds = {layer.name: layer.kind for layer in self.layers}
        for (name, part), span in self.columns.items():
            if kinds[name] == CONVOLUTION:
                found[f"{name}.{part}"] = self.total[span]
            if self.what.per_class:
                found[f"{name}.class_{part}"] = means[:, span]
                if kinds[name] == BATCHNORM and part == "var":
                    total = means[:, span] + between[:, self.columns[name, "mean"]].clamp_min(0)
                    found[f"{name}.class_total_var"] = total
        return {name: tensor.float() for name, tensor in found.items()}

    SAVED = ("total", "class_sums", "class_squares", "class_images", "answers")

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in self.SAVED:
            getattr(self, name).copy_(saved[name])
