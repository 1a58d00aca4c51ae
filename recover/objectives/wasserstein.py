"""Features at the points of a Wasserstein barycenter of their class (WMDD, arXiv 2311.18531)."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import nn

from recover.objectives.base import Batch, Objective, combined
from recover.objectives.batchnorm import BatchNormMatching, MeasuredBatchNorm
from recover.objectives.classwise import ClassMatchedBatchNorm, ClassMeasuredBatchNorm
from recover.settings import Settings
from utils.nets import statistics
from utils.nets.features import Tap
from utils.nets.layers import is_plain
from utils.nets.moments import at_least_fp32
from utils.nets.statistics import Statistics
from utils.nets.teacher import Teacher
from utils.run.errors import UserError


class WassersteinMatching(BatchNormMatching):
    """|| features - their barycenter points ||_2 over the batch + cross-entropy + r_bn * the BatchNorm term.

    WMDD, section 3, and its released code: one Frobenius norm, features and logits of one forward pass. Position p of a
    class has the class's p-th point. With `per_class` the BatchNorms' statistics are compared class by class, with
    each class's own (`class_mean` and `class_total_var` of the file), and the norms averaged over the classes.
    """

    def __init__(
        self,
        teacher: Teacher,
        r_bn: float,
        first_bn: float,
        points: Statistics,
        per_class: Statistics | None = None,
    ):
        self.per_class = per_class  # `matched` reads it
        super().__init__(teacher, r_bn, first_bn)
        self.by_class = [norm for norm in self.norms if hasattr(norm, "labels")]
        self.tap = Tap.of(self.network)
        wide, needed = points.tensors["points"].shape[2], self.tap.linear.in_features
        if wide != needed:
            raise UserError(f"--statistics {points.path}: has {wide} features a point, {teacher.arch} has {needed}")
        self.register_buffer("points", points.tensors["points"])
        self.weights = points.tensors["weights"]
        self.learned = bool(points.settings.get("learn_weights"))
        self.files = [file.sha256 for file in (points, per_class) if file]

    def matched(self, name: str, norm: nn.BatchNorm2d) -> nn.Module | MeasuredBatchNorm:
        if self.per_class is None or f"{name}.class_mean" not in self.per_class.tensors:  # that is never called
            return super().matched(name, norm)
        targets = tuple(self.per_class.tensors[f"{name}.{part}"] for part in ("class_mean", "class_total_var"))
        return (ClassMatchedBatchNorm if is_plain(norm, nn.BatchNorm2d) else ClassMeasuredBatchNorm)(norm, *targets)

    def forward(self, batch: Batch) -> torch.Tensor:
        for norm in self.by_class:
            norm.labels = batch.labels
        loss = super().forward(batch)
        for norm in self.by_class:
            norm.labels = None  # whoever else calls the network says no labels
        features = self.tap.take()
        targets = self.points[batch.labels, positions(batch.labels) % self.points.shape[1]]
        return loss + torch.linalg.vector_norm(features.to(at_least_fp32(features)) - targets)

    def check(self, ipc: int, batch_by: str) -> None:
        if self.points.shape[1] != ipc:
            raise UserError(
                f"the barycenters have {self.points.shape[1]} points a class, and the set {ipc} images; give "
                f"--ipc {self.points.shape[1]}, or points of {statistics.BARYCENTERS} --ipc {ipc}"
            )
        if batch_by != "class":
            raise UserError(f"--batch-by {batch_by}: barycenters need whole classes in a batch; give --batch-by class")

    def facts(self, label: int, position: int) -> dict[str, Any]:
        return {"weight": self.weights[label, position].item()} if self.learned else {}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "statistics": self.files}


def positions(labels: torch.Tensor) -> torch.Tensor:
    """(N,): how many of the same label stand before each; in whole classes that come in order, the position in it."""
    return (labels[:, None] == labels[None, :]).long().tril(-1).sum(1)


def build(teachers: Sequence[Teacher], settings: Settings) -> Objective:
    """The entry of the registry. Raises UserError where the files of settings.statistics do not fit the teachers."""
    files = [statistics.read(path) for path in settings.statistics]
    for file in files:
        if file.settings.get("teacher") not in {teacher.sha256 for teacher in teachers}:
            file.require(teachers[0])
    points = [file for file in files if "points" in file.tensors]
    classes = [file for file in files if "points" not in file.tensors]
    per_class = settings.r_bn > 0 and settings.options.get("per_class", False)
    terms = []
    for teacher in teachers:
        own = of_teacher(points, teacher, f"the barycenters of its features: {statistics.BARYCENTERS}")
        of_classes = None
        if per_class:
            of_classes = of_teacher(classes, teacher, f"its statistics of each class: {statistics.COMMAND} --per-class")
            of_classes.require(teacher, per_class=True)
        terms.append(WassersteinMatching(teacher, settings.r_bn, settings.first_bn_multiplier, own, of_classes))
    return combined(terms, settings.combine)


def of_teacher(files: Sequence[Statistics], teacher: Teacher, what: str) -> Statistics:
    """The one of the files that was made with this teacher. Raises UserError where there is none, or another one."""
    own = [file for file in files if file.settings.get("teacher") == teacher.sha256]
    if not own:
        raise UserError(f"--statistics: {teacher.arch} needs a file of {what}")
    if len(own) > 1:
        raise UserError(f"--statistics: {own[0].path} and {own[1].path} are both of this {teacher.arch}; give one")
    own[0].require(teacher)
    return own[0]
