"""The teacher: a network, and the facts that every stage must agree on."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from safetensors import safe_open
from torch import nn

from utils import models
from utils.datasets import IMAGENET_MEAN, IMAGENET_STD, known
from utils.files import UserError, replacing, sha256
from utils.images import SMALLEST

PREFIXES = ("module.", "_orig_mod.")
LARGEST = 4096  # pixels of an input


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_channels(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value))


# What a checkpoint may say of itself, and what of it is believed.
FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "arch": ("a name", lambda value: isinstance(value, str)),
    "stem": (f"one of {', '.join(models.STEMS)}", lambda value: isinstance(value, str) and value in models.STEMS),
    "num_classes": ("a whole number", lambda value: type(value) is int and 0 < value < 2**31),
    "input_size": (f"a whole number of {SMALLEST} to {LARGEST} pixels",
                   lambda value: type(value) is int and SMALLEST <= value <= LARGEST),
    "mean": ("three numbers", _is_channels),
    "std": ("three numbers above 0", lambda value: _is_channels(value) and min(value) > 0),
    "classes": ("a list of different names", lambda value: isinstance(value, (list, tuple)) and
                all(isinstance(name, str) for name in value) and len(set(value)) == len(value)),
    "top1": ("a number", _is_number),
}


@dataclass
class Teacher:
    """A trained network with its facts. `classes` is None where the checkpoint does not name them."""

    model: nn.Module
    arch: str
    stem: str
    num_classes: int
    classes: list[str] | None
    input_size: int  # pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    assumed: list[str]  # what the checkpoint did not say
    top1: float | None = None  # percent, on the validation set it was squeezed with


def save(path: str | Path, model: nn.Module, **facts: Any) -> None:
    """Write the checkpoint that `load` reads: `model` (a state_dict) and plain metadata."""
    with replacing(path) as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        # Through memory: torch's own writer makes a RuntimeError of a full disk.
        buffer = io.BytesIO()
        torch.save({"model": weights, **facts}, buffer)
        temporary.write_bytes(buffer.getbuffer())


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, its weights under `model` without wrappers' prefixes.

    Accepts a bare state_dict and the keys `model` and `state_dict`, and safetensors, whose metadata are the facts, each a
    JSON value. Never unpickles anything but tensors and plain values. Raises UserError for a file that is none of these.
    """
    try:
        content = _read_safetensors(path) if str(path).endswith(".safetensors") else \
            torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with `python -m squeeze --output {path}`") from None
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        refused = "weights only" in str(error).lower() or "weights_only" in str(error)
        reason = "it holds objects other than tensors and plain values, and they are not run" if refused else \
            "damaged, or not written by torch.save or safetensors"
        raise UserError(f"{path}: cannot be loaded as a checkpoint ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; a state_dict or a dict with 'model' is needed")
    facts = {"model": content}
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            facts = {**content, "model": content[key]}
            break
    weights = {}
    for name, tensor in facts["model"].items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: entry '{name}' is not a tensor; a state_dict or a dict with 'model' is needed")
        while name.startswith(PREFIXES):
            name = name.removeprefix(PREFIXES[0]).removeprefix(PREFIXES[1])
        weights[name] = tensor
    if not weights:
        raise UserError(f"{path}: holds no weights")
    check_facts(path, facts)
    return {**facts, "model": weights}


def check_facts(path: str | Path, facts: dict[str, Any]) -> None:
    """Raises UserError if one of the `facts` in the file `path` cannot be."""
    for name, (kind, holds) in FACTS.items():
        if facts.get(name) is not None and not holds(facts[name]):
            raise UserError(f"{path}: its {name} is not {kind}")


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        facts = {}
        for name, text in (file.metadata() or {}).items():
            with contextlib.suppress(ValueError):  # other tools write other things: not every text is a value
                facts[name] = json.loads(text)
        return {**facts, "model": {name: file.get_tensor(name) for name in file.keys()}}


def load_teacher(arch: str | None, path: str | None, *, dataset: str | None = None, input_size: int | None = None,
                 stem: str | None = None, mean: Sequence[float] | None = None,
                 std: Sequence[float] | None = None, size_of_images: Callable[[], int] | None = None) -> Teacher:
    """The teacher of --teacher-arch and --teacher-path, in eval mode and frozen, on the CPU.

    What is given wins over the data set's facts for what the checkpoint leaves open, but never over what the
    checkpoint says of itself. Without a path, torchvision's pretrained weights serve for imagenet1k. Raises
    UserError where the checkpoint does not fit, naming what does not and what would.
    """
    content = read(path) if path else _pretrained(arch, dataset)
    identity = sha256(path) if path else _sha256(content["model"])
    path = path or f"torchvision's {arch}"
    weights = content["model"]
    assumed = []

    def fact(name: str, given: Any, fallback: Any, note: str) -> Any:
        written = content.get(name)
        written = tuple(written) if isinstance(written, list) else written
        given = tuple(given) if isinstance(given, (list, tuple)) else given
        if written is not None:
            if given is not None and given != written:
                raise UserError(f"{path}: its {name} is {written}, not {given}; leave out the flag, or give "
                                "another checkpoint")
            return written
        if given is None and fallback is not None:
            assumed.append(f"{name} {fallback} ({note})")
        return given if given is not None else fallback

    arch = fact("arch", arch, None, "")
    if arch is None:
        raise UserError(f"{path}: does not name its architecture; give --teacher-arch")
    facts = known(dataset)
    size = fact("input_size", input_size, facts.input_size if facts else None, f"{dataset}'s")
    num_classes = fact("num_classes", None, models.read_num_classes(weights), "read from the weights")
    if num_classes is None:
        raise UserError(f"{path}: holds no linear layer to read the number of classes from; is it a {arch}?")
    if (outputs := models.read_num_classes(weights)) and outputs != num_classes:
        raise UserError(f"{path}: says that it has {num_classes} classes, and its last layer has {outputs}")
    if content.get("classes") and len(content["classes"]) != num_classes:
        raise UserError(f"{path}: names {len(content['classes'])} classes, and has {num_classes}")
    if size is None and size_of_images:
        size = size_of_images()
        assumed.append(f"input_size {size} (from the images)")
    if size is None:
        raise UserError(f"{path}: does not say its input size; give --input-size or --dataset")
    if content.get("stem") is None and (seen := models.read_stem(arch, weights)):
        if stem is not None and stem != seen:
            raise UserError(f"{path}: its first convolution is the {seen} stem's, not the {stem} stem's; "
                            f"give --stem {seen}")
        stem = seen
    stem = fact("stem", stem, models.default_stem(size), f"for {size} pixels")
    mean = fact("mean", mean, IMAGENET_MEAN, "ImageNet's")
    std = fact("std", std, IMAGENET_STD, "ImageNet's")
    classes = content.get("classes")

    model = models.build(arch, num_classes, size, stem)
    _fit(model, weights, f"{path}: does not fit {arch} with the {stem} stem, {num_classes} classes, {size} pixels")
    return Teacher(model.eval().requires_grad_(False), arch, stem, num_classes, list(classes) if classes else None,
                   size, mean, std, identity, assumed, content.get("top1"))


def _fit(model: nn.Module, weights: dict[str, torch.Tensor], what: str) -> None:
    own = model.state_dict()
    # Older torch kept no counter of batches; it takes no part in anything computed here.
    missing = sorted(name for name in set(own) - set(weights) if not name.endswith("num_batches_tracked"))
    extra = sorted(set(weights) - set(own))
    wrong = [f"{name} is {tuple(weights[name].shape)}, needs {tuple(own[name].shape)}"
             for name in own if name in weights and weights[name].shape != own[name].shape]
    problems = [f"lacks {missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else f"lacks {missing[0]}"] \
        if missing else []
    problems += [f"has {extra[0]}, which is unknown to it" + (f", and {len(extra) - 1} more" if extra[1:] else "")] \
        if extra else []
    problems += wrong[:1]
    if problems:
        raise UserError(f"{what} ({'; '.join(problems)}); check --teacher-arch, --stem and --input-size")
    model.load_state_dict(weights, strict=False)


def _pretrained(arch: str | None, dataset: str | None) -> dict[str, Any]:
    """torchvision's first ImageNet-1K weights in the form of `read`."""
    if dataset != "imagenet1k" or arch is None:
        raise UserError("no teacher: give --teacher-path (train one with `python -m squeeze`); only --dataset "
                        "imagenet1k with --teacher-arch goes without, by torchvision's pretrained weights")
    try:
        model = models.build(arch, 1000, 224, "imagenet", weights="IMAGENET1K_V1")
    except (OSError, RuntimeError) as error:
        raise UserError(f"torchvision's weights for {arch} cannot be fetched ({str(error).splitlines()[0]}); download "
                        "them elsewhere and give the file as --teacher-path") from None
    except (ValueError, KeyError):
        raise UserError(f"torchvision has no IMAGENET1K_V1 weights for {arch}; give --teacher-path") from None
    return {"model": model.state_dict(), "arch": arch, "stem": "imagenet", "num_classes": 1000,
            "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


def _sha256(weights: dict[str, torch.Tensor]) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        state.update(name.encode())
        state.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
