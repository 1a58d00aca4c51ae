"""What a student learns from: the logits of one or several teachers, or the classes; and by which loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.data.manifest import MANIFEST
from utils.nets.batch_statistics import with_batch_statistics
from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher, unsaid_of
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.errors import UserError
from validate.protocols import Protocol
from validate.stream import Step, Stream, spans

Labelled = Iterator[tuple[Step, torch.Tensor]]  # batches with their targets (B, classes)


@dataclass(frozen=True)
class Loss:
    """The loss of each image: value(logits (B, classes) fp32, target (B, classes), step, protocol) -> (B,)."""

    value: Callable[[torch.Tensor, torch.Tensor, Step, Protocol], torch.Tensor]
    target: str  # of a teacher: "probabilities" at the protocol's temperature, or "logits"
    reads: tuple[str, ...] = ()  # of the flags that not every loss reads (validate/flags.py)


def _kl(logits: torch.Tensor, target: torch.Tensor, step: Step, protocol: Protocol) -> torch.Tensor:
    """KL(student / T, teacher / T)."""
    return kl_div(log_softmax(logits / protocol.temperature, 1), target, reduction="none").sum(1)


def _mse(logits: torch.Tensor, target: torch.Tensor, step: Step, protocol: Protocol) -> torch.Tensor:
    """Squared error of the logits, and a share of cross-entropy to the class of the unmixed image (G-VBSM, EDC)."""
    loss = mse_loss(logits, target, reduction="none").mean(1)
    if protocol.class_weight:
        loss = loss + protocol.class_weight * cross_entropy(logits, step.labels, reduction="none")
    return loss


def _ce(logits: torch.Tensor, target: torch.Tensor, step: Step, protocol: Protocol) -> torch.Tensor:
    """Cross-entropy to the target's probabilities, which are the mixed classes' shares for hard labels."""
    return cross_entropy(logits, target, reduction="none")


LOSSES = {
    "kl": Loss(_kl, "probabilities"),
    "mse": Loss(_mse, "logits", ("class_weight",)),
    "ce": Loss(_ce, "probabilities"),
}


@dataclass(frozen=True)
class Teachers:
    """Who labels, by its facts; `networks` are there unless the labels are stored or hard."""

    geometry: Geometry  # of the students' images
    archs: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()  # SHA-256
    networks: tuple[nn.Module, ...] = ()  # frozen, on the device
    geometries: tuple[Geometry, ...] = ()  # of each network
    orders: tuple[str | None, ...] = ()  # who says the order of each one's classes (utils/nets/class_order.py)
    dataset: str | None = None  # the known data set of their images
    unsaid: Mapping[str, Any] = field(default_factory=dict)  # what their files leave open, as `unsaid_of` has it

    @classmethod
    def of(cls, teachers: list[Teacher], runtime: Runtime) -> Teachers:
        """Images are normalised as the first teacher says; the others normalise them for themselves."""
        return cls(
            teachers[0].geometry,
            tuple(teacher.arch for teacher in teachers),
            tuple(teacher.sha256 for teacher in teachers),
            tuple(frozen(teacher.network, runtime, teacher) for teacher in teachers),
            tuple(teacher.geometry for teacher in teachers),
            tuple(teacher.order for teacher in teachers),
            next((teacher.dataset for teacher in teachers if teacher.dataset), None),
            unsaid_of(teachers),
        )

    @property
    def name(self) -> str:
        return "+".join(self.archs) or "none"

    def labeller(self, stream: Stream) -> Callable[[torch.Tensor], torch.Tensor]:
        """Mixed images (B, 3, S, S) -> what the protocol's loss asks for (B, classes), fp32; of the mean of logits.

        By the statistics of batches, the images are labelled in the parts that the student sees together.
        """
        protocol, runtime = stream.protocol, stream.runtime
        by_batch = protocol.teacher_statistics == "batch"
        networks = [with_batch_statistics(network) for network in self.networks] if by_batch else self.networks
        networks = [runtime.compiled(network, stream.schedule.steps) for network in networks]
        probabilities = LOSSES[protocol.loss].target == "probabilities"

        def logits_of(images: torch.Tensor) -> torch.Tensor:
            found = [
                network(geometry.renormalise(images, self.geometry)).float()
                for network, geometry in zip(networks, self.geometries)
            ]
            return found[0] if len(found) == 1 else torch.stack(found).mean(0)

        def label(images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad(), runtime.autocast():
                parts = spans(len(images), protocol.accumulate) if by_batch else []
                logits = torch.cat([logits_of(images[part]) for part in parts]) if parts else logits_of(images)
                return softmax(logits / protocol.temperature, 1) if probabilities else logits

        return label

    def labelled(self, stream: Stream, start: int = 0) -> Labelled:
        """All batches from `start` on with the teachers' targets."""
        label = self.labeller(stream)
        for step in stream.draw(range(stream.protocol.epochs), start):
            yield step, label(step.images)


def hard_labelled(stream: Stream, start: int = 0) -> Labelled:
    """All batches from `start` on with the shares of their classes."""
    for step in stream.draw(range(stream.protocol.epochs), start):
        yield step, step.shares


def student_losses(protocol: Protocol, weights: torch.Tensor | None = None) -> Callable:
    """losses(forward, (step, target)) -> (B,) fp32, as the training loop takes it.

    `weights` (images of the set,), on the device: each image's loss is weighed by its own over the batch's mean (WMDD).
    """

    def losses(forward: Callable, batch: tuple[Step, torch.Tensor]) -> torch.Tensor:
        step, target = batch
        loss = LOSSES[protocol.loss].value(forward(step.images).float(), target, step, protocol)
        if weights is None:
            return loss
        whole = step.order if step.batch_order is None else step.batch_order
        mean = distributed.batch_mean(weights[transfer(whole, weights.device)], step.batch_size)
        return loss * weights[transfer(step.order, weights.device)] / mean

    return losses


def accumulated(protocol: Protocol) -> Callable | None:
    """parts((step, target)) -> the parts of a batch that a student's step sees one after the other; None for one."""
    if protocol.accumulate == 1:
        return None

    def parts(batch: tuple[Step, torch.Tensor]) -> list[tuple[Step, torch.Tensor]]:
        step, target = batch
        # As many on all ranks, whatever each one's share of the last batch is.
        fewest = max(step.batch_size // distributed.get_world_size(), distributed.MIN_LOCAL_BATCH)
        count = len(spans(fewest, protocol.accumulate))
        return [(step.part(span), target[span]) for span in spans(len(step.images), count)]

    return parts


def image_weights(folder: ImageFolder) -> list[float] | None:
    """The weight of each image by the set's manifest; None where it has none.

    Raises UserError where only some images have one, or one is not a positive number.
    """
    entries = [folder.manifest.images.get(path) for path in folder.paths]
    found = [entry.get("weight") if isinstance(entry, dict) else None for entry in entries]
    if all(weight is None for weight in found):
        return None
    for path, weight in zip(folder.paths, found):
        if type(weight) not in (int, float) or not 0 < weight < 1e30:
            raise UserError(
                f"{folder.root}: its {MANIFEST} gives {path} the weight {weight}; every image needs a "
                "positive number below 1e30, or give --image-weights off"
            )
    return [float(weight) for weight in found]
