"""The order of a teacher's classes: who says it, and whether the teacher's answers agree with it.

A checkpoint that names its classes is matched by name. Another one is taken in the sorted order of the class folders,
or in the order of a file, and what it says of labelled images then shows whether that is right: in a wrong order the
images of one class are called by another one's name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder, by_number, has_mixed_numbers
from utils.data.loader import EvalBatches
from utils.run import distributed
from utils.run.device import Runtime, transfer
from utils.run.errors import UserError
from utils.run.memory import ask

SORTED = "the sorted order of their folders"
MARGIN = 0.2  # an accuracy this far above the limit is told from one below it
MOST_ERROR = 0.01  # the probability at which an honest teacher of that accuracy would be refused
FEW = 10  # images: fewer say nothing of one class
LEAST = 0.2  # share of a class's images that another name has to have
SAMPLE = 2000  # images by which a teacher is judged where its answers to all are not asked for anyway


def read_names(path: str) -> tuple[str, ...]:
    """The class folders' names in label order, one a line, without blanks behind them.

    Raises UserError where the file is no such list.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--classes {path}: cannot be read ({error}); one class folder name a line is needed") from None
    names = tuple(line.rstrip() for line in text.rstrip().splitlines())
    if not names or "" in names:
        raise UserError(f"--classes {path}: has an empty line; one class folder name a line is needed, in label order")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"--classes {path}: names '{twice}' twice")
    return names


def settle(path: str, geometry: Geometry, class_file: str | None) -> tuple[Geometry, str | None]:
    """The geometry with the classes of `class_file`, where one is given, and who says the order of the classes.

    None stands for the checkpoint `path` itself. Raises UserError where the file does not fit it, or gives its own
    names another order.
    """
    if class_file is None:
        return geometry, None if geometry.classes else SORTED
    names = read_names(class_file)
    if len(names) != geometry.num_classes:
        raise UserError(f"--classes {class_file}: names {len(names)} classes, {path} has {geometry.num_classes}")
    if geometry.classes == names:
        return geometry, None
    if geometry.classes and set(geometry.classes) == set(names):
        first = next(label for label, name in enumerate(names) if name != geometry.classes[label])
        raise UserError(
            f"--classes {class_file}: its class {first} is '{names[first]}', and {path} calls its own class {first} "
            f"'{geometry.classes[first]}'; leave out --classes"
        )
    return replace(geometry, classes=names), f"--classes {class_file}"


def sample(folder: ImageFolder) -> ImageFolder:
    """About SAMPLE images, as many of each class or all that a smaller one has, to judge a teacher by."""
    each, count = math.ceil(SAMPLE / len(folder.classes)), len(folder.classes)
    return folder.taking([index for label in range(count) for index in folder.span(label)[:each]])


@dataclass(frozen=True)
class Answers:
    """What a teacher says of labelled images: counts (classes, classes), of the images of a label those called each."""

    counts: torch.Tensor

    @classmethod
    def of(cls, labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> Answers:
        """`labels` and `predicted` (N,), whole numbers."""
        counts = torch.zeros(num_classes, num_classes, dtype=torch.long, device=labels.device)
        count(counts, labels, predicted)
        return cls(counts)

    @classmethod
    @torch.inference_mode()
    def to(cls, images: EvalBatches, network: nn.Module, geometry: Geometry, runtime: Runtime) -> Answers:
        """Of a frozen network on the device to all ranks' images."""
        counts = torch.zeros(geometry.num_classes, geometry.num_classes, dtype=torch.long, device=runtime.device)
        for batch, labels in images:
            logits = ask(network, batch, geometry, runtime)
            count(counts, transfer(labels, runtime.device), logits.argmax(1))
            distributed.keep_alive()
        distributed.barrier()
        return cls(distributed.all_reduce_sum(counts).cpu())

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return int(self.counts.diagonal().sum()) / self.images

    def accuracy_as(self, order: Sequence[int]) -> float:
        """If the images of label k were called order[k] by a teacher that is right."""
        return int(self.counts[range(len(order)), list(order)].sum()) / self.images

    @property
    def is_near_chance(self) -> bool:
        """Below twice chance, of few classes below chance and a tenth, and more images than luck explains."""
        if len(self.counts) == 1:
            return False
        chance = 1 / len(self.counts)
        limit = chance + min(chance, 0.1)
        unlucky = math.exp(-2 * self.images * (limit + MARGIN - self.accuracy) ** 2)  # Hoeffding's inequality
        return self.accuracy < limit and unlucky < MOST_ERROR

    def exchanged(self) -> list[tuple[int, int]]:
        """The labels (k, l) where the images of k are called l, and l's own are called by a third label, and so on in a
        circle: names that changed places. Empty where there are too few images to tell.
        """
        best, most, own = self.counts.argmax(1).tolist(), self.counts.amax(1), self.counts.diagonal()
        of_class = self.counts.sum(1)
        clear = ((most >= LEAST * of_class) & (most >= 5 * own) & (most > 0)).tolist()
        found = []
        for first in range(len(best)):
            circle, label = [first], best[first]
            while clear[label] and label != first and len(circle) <= len(best) and label not in circle:
                circle.append(label)
                label = best[label]
            if label == first and len(circle) > 1 and clear[first]:
                found.append((first, best[first]))
        many = [(first, second) for first, second in found if of_class[first] >= FEW]
        if len(found) >= len(best) / 2 and sum(int(of_class[first]) for first, _ in found) >= FEW:
            return found  # most of all classes: few images of each suffice
        return many if {second for _, second in many} == {first for first, _ in many} else []


def count(counts: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> None:
    """Add images to an `Answers`' counts, in place: `labels` and `predicted` (N,), whole numbers."""
    pairs = labels.long() * len(counts) + predicted.long()
    counts.view(-1).index_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for a GPU


def check(answers: Answers, names: Sequence[str], who: str, order: str | None) -> None:
    """Print how often the teacher `who` is right, and judge the `order` of its classes, as `settle` gives it.

    `names` are the class folders' names in that order. Raises UserError where it cannot be the teacher's, unless the
    checkpoint says it itself.
    """
    found = f"{who} is right about {100 * answers.accuracy:.1f} % of {answers.images:,} images"
    print(f"{found} of {len(names)} classes (chance: {100 / len(names):.1f} %)")
    cause = _cause(answers, names)
    if order is None or cause is None:
        return
    advice = "give --classes FILE, one class folder name a line, in the teacher's label order"
    if order != SORTED:
        advice = (
            f"correct {order.removeprefix('--classes ')}: one class folder name a line, in the teacher's label order"
        )
    raise UserError(f"{found}, its classes taken in {_described(order)}: {cause}; {advice}")


def _described(order: str) -> str:
    return order if order == SORTED else f"the order of {order}"


def _cause(answers: Answers, names: Sequence[str]) -> str | None:
    """What is wrong with the order of the classes; None where it may be right."""
    numeric = by_number(names) if has_mixed_numbers(names) else list(names)
    if numeric != list(names):
        # The label that a teacher gives to a folder if it counts by number.
        counted = answers.accuracy_as([numeric.index(name) for name in names])
        if counted > 2 * answers.accuracy and (counted - answers.accuracy) * answers.images >= FEW:
            return (
                f"the folders are numbers, {', '.join(names[:4])}, ... sorted as text, and the teacher counts "
                f"{', '.join(numeric[:4])}, ... ({100 * counted:.1f} % in that order, which `ls DIR | sort -V` gives)"
            )
    if exchanged := answers.exchanged():
        first, second = exchanged[0]
        return (
            f"that is another order than the teacher's (it calls '{names[first]}' as '{names[second]}' should be "
            f"called, and {len(exchanged)} classes are exchanged so)"
        )
    if answers.is_near_chance:
        return (
            "near chance; likely its labels have another order (numbers sorted as text, or a list of the data set's "
            "own), or --mean, --std, --stem or --input-size are not the teacher's"
        )
    return None
