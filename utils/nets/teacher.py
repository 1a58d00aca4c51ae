"""The teacher: a trained network, with the geometry that it was trained for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from utils.data.datasets import IMAGENET_MEAN, IMAGENET_STD, first_known, known
from utils.data.geometry import Geometry, GeometryFlags, plain
from utils.data.image_folder import ImageFolder
from utils.data.sizes import common_size, larger
from utils.nets import checkpoints, class_order, models, weights
from utils.run.errors import UserError, first_line, listed
from utils.run.files import sha256
from utils.run.progress import say_once

_OF_TEACHER = " of teacher "


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode, frozen, and what is known of it.

    As loaded it is on the CPU. A stage takes it over: what prepares a network (`frozen`, an objective, `extractor`)
    moves, casts and changes it in place and gives what is to be used from then on. Who needs it untouched copies it.
    """

    network: nn.Module
    arch: str
    geometry: Geometry
    sha256: str
    top1: float | None = None  # percent, on the validation set it was squeezed with
    order: str | None = None  # who says the order of its classes; None: the checkpoint itself
    assumed: tuple[str, ...] = ()  # what the checkpoint did not say
    dataset: str | None = None  # the known data set of its images
    # `arch`, `mean`, `std` and `stem` as records have them, where neither its file nor its architecture says them.
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    crop_padding: int | None = None  # pixels, of the crops that it was trained on, if its file says it

    def identity(self) -> dict[str, Any]:
        """What decides its answers to images, as the records of stages have it."""
        mean, std = list(self.geometry.mean), list(self.geometry.std)
        facts = {"teacher": self.sha256, "input_size": self.geometry.input_size, "mean": mean, "std": std}
        return {**facts, **self.unsaid}


def unsaid_of(teachers: Sequence[Teacher]) -> dict[str, Any]:
    """What teachers that work together leave unsaid, each under a name of its own: `mean of teacher 2`."""
    numbered = enumerate(teachers, start=1)
    return {f"{name}{_OF_TEACHER}{k}": value for k, teacher in numbered for name, value in teacher.unsaid.items()}


def unsaid_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record has of `unsaid_of`."""
    return {name: value for name, value in record.items() if _OF_TEACHER in name}


def beside(said: Mapping[str, Any], unsaid: Mapping[str, Any]) -> dict[str, Any]:
    """What a record needs of `unsaid_of`, beside what it has `said` of all teachers under plain names.

    Nothing where all are as `said`, but for `arch`, which no record says under a plain name.
    """
    return {name: value for name, value in unsaid.items() if said.get(name.partition(_OF_TEACHER)[0]) != value}


def load_teacher(
    arch: str | None,
    path: str | None,
    given: GeometryFlags = GeometryFlags(),
    size_of_images: Callable[[], tuple[int, str]] | None = None,
    class_file: str | None = None,
) -> Teacher:
    """The teacher of --teacher-arch and --teacher-path.

    What is given completes what the checkpoint says of itself, and never wins over it. What neither says: its input
    size is the data set's, and its normalisation ImageNet's, by which much of the field trains on other data sets too.
    `class_file` names the class folders in label order. Without a path, torchvision's pretrained weights serve for
    imagenet1k. `size_of_images` gives the input size and who says it. Raises UserError where the checkpoint does not
    fit, naming what does not and what would.
    """
    content = checkpoints.read(path) if path else _pretrained(arch, given.dataset)
    identity = sha256(path) if path else _sha256(content["model"])
    facts = _Facts(path or f"torchvision's {arch}", content)
    arch = facts.arch(arch)
    published = models.published(arch, identity) if path else None
    geometry = _geometry(facts, arch, given, size_of_images, published)
    geometry, order = class_order.settle(facts.path, geometry, class_file)
    if order == class_order.SORTED:
        facts.assumed.append(f"classes in {order} (--classes FILE gives another order)")
    network = models.build(arch, geometry.num_classes, geometry.input_size, geometry.stem)
    tensors = weights.matched(content["model"], network.state_dict())
    _load_weights(network, tensors, f"{facts.path}: does not fit {arch} with {_described(geometry)}")
    weights.require_finite({n: t for n, t in network.state_dict().items() if n in tensors}, facts.path)
    if hasattr(network, "transform_input"):  # GoogLeNet and Inception; no part of the weights
        network.transform_input = facts.get(
            "transform_input", True if published else None, False, "torchvision's own have it"
        )
    return Teacher(
        network.eval().requires_grad_(False),
        arch,
        geometry,
        identity,
        content.get("top1"),
        order,
        tuple(facts.assumed),
        given.dataset or facts.dataset,
        _unsaid(facts, arch, geometry),
        facts.crop_padding,
    )


def geometry_of_images(given: GeometryFlags, folder: ImageFolder, workers: int | None) -> Geometry:
    """The geometry where no teacher has one yet: the flags', else the data set's, else the images'.

    Raises UserError if the folder has not as many classes as the data set.
    """
    facts = known(given.dataset)
    if facts and facts.classes != len(folder.classes):
        raise UserError(
            f"{folder.role} {folder.root}: has {len(folder.classes)} classes, {given.dataset} has {facts.classes}; "
            "leave out --dataset for a data set of your own"
        )
    size = given.input_size or (facts.input_size if facts else None)
    if size is None:
        size = common_size(sizes := folder.load(workers))
        if others := larger(sizes, size):
            say_once(f"{folder.role} {folder.root}: inputs of {size} pixels{others}; --input-size gives another size")
    return Geometry(
        input_size=size,
        mean=tuple(given.mean or (facts.mean if facts else IMAGENET_MEAN)),
        std=tuple(given.std or (facts.std if facts else IMAGENET_STD)),
        num_classes=len(folder.classes),
        classes=tuple(folder.classes),
        stem=given.stem or models.default_stem(size),
    )


class _Facts:
    """What a checkpoint says of itself, completed by what was given; `assumed` lists what neither said."""

    def __init__(self, path: str, content: dict[str, Any]):
        self.path, self.content, self.assumed = path, content, []

    @property
    def dataset(self) -> str | None:
        """The known data set that it names, as squeeze does in its settings."""
        return first_known(self.content.get("dataset"), self._settings.get("dataset"))

    @property
    def crop_padding(self) -> int | None:
        """Pixels, as squeeze has it in its settings; None where it is not there, or cannot be."""
        value = self._settings.get("crop_padding")
        return value if type(value) is int and 0 <= value <= checkpoints.MAX_SIZE else None

    @property
    def _settings(self) -> dict[str, Any]:
        settings = self.content.get("settings")
        return settings if isinstance(settings, dict) else {}

    def arch(self, given: str | None) -> str:
        """The architecture. What is given wins where the checkpoint's own name is none that is known."""
        written = self.content.get("arch")
        if written is not None and given not in (None, written):
            if not models.is_known(written):
                self.assumed.append(f"arch {given} (--teacher-arch; its own, '{written}', is not known)")
                return given
            if given == models.TIMM + written:  # timm's own scripts leave the prefix out
                return given
        arch = self.get("arch", given)
        if arch is None:
            raise UserError(f"{self.path}: does not name its architecture; give --teacher-arch")
        if given is None and not models.is_known(arch):
            raise UserError(
                f"{self.path}: its arch '{arch}' is not known; give --teacher-arch: {models.own()}, a "
                "torchvision name such as resnet18, or timm/NAME"
            )
        return arch

    def get(self, name: str, given: Any, fallback: Any = None, source: str = "") -> Any:
        written, given = (
            tuple(value) if isinstance(value, (list, tuple)) else value for value in (self.content.get(name), given)
        )
        if written is not None:
            if given is not None and given != written:
                raise UserError(
                    f"{self.path}: its {name} is {written}, not {given}; leave out the flag, or give another checkpoint"
                )
            return written
        if given is None and fallback is not None:
            self.assumed.append(f"{name} {fallback} ({source})")
        return given if given is not None else fallback


def _geometry(
    facts: _Facts,
    arch: str,
    given: GeometryFlags,
    size_of_images: Callable[[], tuple[int, str]] | None,
    published: WeightsEnum | None,
) -> Geometry:
    path, content, tensors = facts.path, facts.content, facts.content["model"]
    dataset = known(given.dataset)
    size = facts.get("input_size", given.input_size, dataset.input_size if dataset else None, f"{given.dataset}'s")
    outputs = models.read_num_classes(arch, tensors)
    num_classes = facts.get("num_classes", None, outputs, "read from the weights")
    if num_classes is None:
        raise UserError(
            f"{path}: the number of classes cannot be read from its weights; if it is a {arch}, save "
            "{'model': ..., 'num_classes': N}"
        )
    if outputs and outputs != num_classes:
        raise UserError(f"{path}: says that it has {num_classes} classes, and its last layer has {outputs}")
    classes = content.get("classes")
    if classes and len(classes) != num_classes:
        raise UserError(f"{path}: names {len(classes)} classes, and has {num_classes}")
    if size is None and size_of_images:
        size, source = size_of_images()
        facts.assumed.append(f"input_size {size} (from {source})")
    if size is None:
        raise UserError(f"{path}: does not say its input size; give --input-size or --dataset")
    stem = given.stem
    if content.get("stem") is None and (seen := models.read_stem(arch, tensors)):
        if stem is not None and stem != seen:
            raise UserError(
                f"{path}: its first convolution is the {seen} stem's, not the {stem} stem's; give --stem {seen}"
            )
        stem = seen
    usual, whose = (IMAGENET_MEAN, IMAGENET_STD), "ImageNet's"
    if published:
        usual, whose = _normalisation(published), "as torchvision trained it"

    def normalisation(name: str, value: tuple[float, ...]) -> tuple[float, ...]:
        own, source = getattr(dataset, name, value), whose
        if own != value and not published:
            source += f"; {given.dataset}'s own: --{name} {' '.join(map(str, own))}"
        return facts.get(name, getattr(given, name), value, source)

    return Geometry(
        stem=facts.get("stem", stem, models.default_stem(size), f"for {size} pixels"),
        mean=normalisation("mean", usual[0]),
        std=normalisation("std", usual[1]),
        input_size=size,
        num_classes=num_classes,
        classes=tuple(classes) if classes else None,
    )


def _unsaid(facts: _Facts, arch: str, geometry: Geometry) -> dict[str, Any]:
    names, values = ("mean", "std", *(["stem"] if models.hides_stem(arch) else [])), plain(geometry)
    found = {name: values[name] for name in names if facts.content.get(name) is None}
    return found if facts.content.get("arch") == arch else {"arch": arch, **found}


def _described(geometry: Geometry) -> str:
    return f"the {geometry.stem} stem, {geometry.num_classes} classes, {geometry.input_size} pixels"


def _load_weights(network: nn.Module, tensors: weights.Weights, message: str) -> None:
    own = network.state_dict()
    # Older torch kept no counter of batches; it takes no part in anything computed here.
    missing = sorted(name for name in set(own) - set(tensors) if not name.endswith("num_batches_tracked"))
    extra = sorted(set(tensors) - set(own))
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, needs {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = wrong[:1]
    if extra:
        problems.insert(0, f"has {listed(extra, 1)}, unknown to it")
    if missing:
        problems.insert(0, f"lacks {listed(missing, 1)}")
    if problems:
        raise UserError(f"{message} ({'; '.join(problems)}); check --teacher-arch, --stem and --input-size")
    named = OrderedDict(tensors)
    # The names and shapes are this version's by now, and the file's own metadata may be lost; MNASNet asks for some.
    named._metadata = own._metadata
    network.load_state_dict(named, strict=False)


def _pretrained(arch: str | None, dataset: str | None) -> dict[str, Any]:
    """torchvision's first ImageNet-1K weights in the form of checkpoints.read."""
    facts = known(dataset)
    if not facts or not facts.pretrained or arch is None:
        raise UserError(
            "no teacher: give --teacher-path (train one with `python -m squeeze`); only --dataset imagenet1k with "
            "--teacher-arch goes without, by torchvision's pretrained weights"
        )
    try:
        found = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"]
        network = models.build(arch, 1000, 224, "imagenet", weights=found.name)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights for {arch} cannot be fetched ({first_line(error)}); download them "
            "elsewhere and give the file as --teacher-path"
        ) from None
    except (ValueError, KeyError):
        raise UserError(f"torchvision has no IMAGENET1K_V1 weights for {arch}; give --teacher-path") from None
    facts = {"transform_input": True} if getattr(network, "transform_input", False) else {}
    mean, std = _normalisation(found)
    return {
        **facts,
        # Inception brings an auxiliary classifier that nothing here uses.
        "model": {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("AuxLogits.")},
        "arch": arch,
        "stem": "imagenet",
        "num_classes": 1000,
        "mean": list(mean),
        "std": list(std),
    }


def _normalisation(found: WeightsEnum) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std by which torchvision trained a network: EfficientNetV2-L's are not ImageNet's."""
    transforms = found.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _sha256(tensors: weights.Weights) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
