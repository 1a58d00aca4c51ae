"""Checkpoints: weights and the facts about them, in one file."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors import safe_open
from torch import nn

from utils.data.geometry import fault_of_scale
from utils.data.sizes import MAX_SIZE, MIN_SIZE
from utils.nets import harmless, weights
from utils.nets.models import STEMS
from utils.run.errors import UserError
from utils.run.files import write_bytes


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_channels(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_number, value))


# What a checkpoint may say of itself, and what is accepted of that.
FACTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "arch": ("a name", lambda value: isinstance(value, str)),
    "stem": (f"one of {', '.join(STEMS)}", lambda value: isinstance(value, str) and value in STEMS),
    "num_classes": ("a whole number", lambda value: type(value) is int and 0 < value < 2**31),
    "input_size": (
        f"a whole number of {MIN_SIZE} to {MAX_SIZE} pixels",
        lambda value: type(value) is int and MIN_SIZE <= value <= MAX_SIZE,
    ),
    "mean": ("three numbers", _is_channels),
    "std": ("three numbers above 0", lambda value: _is_channels(value) and min(value) > 0),
    "classes": (
        "a list of different names",
        lambda value: (
            isinstance(value, (list, tuple))
            and all(isinstance(name, str) for name in value)
            and len(set(value)) == len(value)
        ),
    ),
    "top1": ("a number", _is_number),
    "transform_input": ("true or false", lambda value: isinstance(value, bool)),
}


def save(path: str | Path, model: nn.Module, **facts: Any) -> None:
    """Write the checkpoint that `read` reads: `model` (a state_dict) and plain metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # Through memory: torch's own writer makes a RuntimeError of a full disk.
    buffer = io.BytesIO()
    torch.save({"model": tensors, **facts}, buffer)
    write_bytes(path, buffer.getbuffer())


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, its weights under `model` without wrappers' names.

    Accepts a bare state_dict and other dicts that hold one (utils/nets/weights.py), and safetensors, whose metadata
    are the facts, each a JSON value. Never unpickles anything but tensors, plain values and stand-ins for harmless
    types (utils/nets/harmless.py). Raises UserError for any other file.
    """
    try:
        content = _read_safetensors(path) if str(path).endswith(".safetensors") else harmless.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with `python -m squeeze --output {path}`") from None
    except Exception as error:  # whatever a damaged file makes the unpickler raise
        raise UserError(f"{path}: cannot be loaded as a checkpoint ({_reason(str(error))})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; a state_dict or a dict with 'model' is needed")
    entries = weights.locate(path, content)
    found = weights.clean(path, entries)
    if entries is content:  # what is called `mean` in a bare state_dict is no fact
        return {"model": found}
    facts = _facts_of(content)
    check_facts(path, facts)
    return {**facts, "model": found}


def _reason(error: str) -> str:
    if "weights only" not in error.lower() and "weights_only" not in error:
        return "damaged, or not written by torch.save or safetensors"
    named = re.search(r"GLOBAL (\S+) (?:was not|whose module)", error)
    what = f"objects such as {named[1]}" if named else "objects"
    return f"it holds {what} beside tensors and plain values, and they are not run; save model.state_dict() alone"


def _facts_of(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with its facts in our own form, where other code writes them in another one."""
    facts = dict(content)
    for name in FACTS:
        if isinstance(facts.get(name), torch.Tensor):
            facts[name] = facts[name].tolist()
    size = facts.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) in (2, 3) and size[-1] == size[-2]:  # (channels,) height, width
        facts["input_size"] = size[-1]
    if type(facts.get("classes")) is int:  # how many
        count = facts.pop("classes")
        facts.setdefault("num_classes", count)
    labels = content.get("class_to_idx")  # of torchvision's ImageFolder
    if facts.get("classes") is None and isinstance(labels, dict) and labels:
        if all(isinstance(name, str) and type(label) is int for name, label in labels.items()):
            if sorted(labels.values()) == list(range(len(labels))):
                facts["classes"] = sorted(labels, key=labels.get)
    return facts


def check_facts(path: str | Path, facts: dict[str, Any]) -> None:
    """Raises UserError if one of the `facts` in the file `path` cannot be."""
    for name, (kind, holds) in FACTS.items():
        if facts.get(name) is not None and not holds(facts[name]):
            raise UserError(f"{path}: its {name} is not {kind}")
    if fault := fault_of_scale(facts.get("mean"), facts.get("std"), "its "):
        raise UserError(f"{path}: {fault}; correct the file")


def _read_safetensors(path: str | Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        facts = {}
        for name, text in (file.metadata() or {}).items():
            with contextlib.suppress(ValueError):  # other tools write other things: not every text is a value
                facts[name] = json.loads(text)
        return {**facts, "model": {name: file.get_tensor(name) for name in file.keys()}}
