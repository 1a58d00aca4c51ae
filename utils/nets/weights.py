"""Weights as others publish them: where they stand in a checkpoint, and under which names."""

from __future__ import annotations

import re
from typing import Any, Iterable, Mapping

import torch

from utils.run.errors import UserError

Weights = dict[str, torch.Tensor]

PREFERRED = ("model", "state_dict")
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTERS = {"n_averaged", "total_ops", "total_params"}  # of averaged models, and of profilers
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's heads, which only training uses

# Names that networks had in older versions, and in the field's code, with those of today.
RENAMED = (
    (r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),  # torchvision's DenseNet
    (r"\bmlp\.linear_1\.", "mlp.0."),  # torchvision's ViT
    (r"\bmlp\.linear_2\.", "mlp.3."),
    (r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample."),  # the ResNets of pytorch-cifar
    (r"^linear\.", "fc."),
)


def locate(path: object, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the weights are in the content of the file `path`.

    They are what `model` or `state_dict` holds, else the content itself, else its only dict of tensors. Raises
    UserError where several may be meant.
    """
    found = _preferred(content)
    if found is None and not any(isinstance(value, torch.Tensor) and value.ndim > 1 for value in content.values()):
        found = _only(path, content)
    return content if found is None else found


def clean(path: object, entries: Mapping[str, Any]) -> Weights:
    """A state_dict without wrappers' names and counters. Raises UserError where it holds something else, or nothing."""
    found = {}
    for name, tensor in entries.items():
        if str(name).endswith("_extra_state") or str(name).rpartition(".")[2] in COUNTERS:
            continue
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: entry '{name}' is not a tensor; a state_dict or a dict with 'model' is needed")
        found[name] = tensor
    if not found:
        raise UserError(f"{path}: holds no weights")
    short = short_names(found)
    return {short[name]: tensor for name, tensor in found.items()}


def _preferred(content: Mapping[str, Any]) -> Mapping | None:
    """What the keys with a fixed meaning hold, which may hold one another."""
    for key in PREFERRED:
        if isinstance(content.get(key), dict):
            return _preferred(content[key]) or content[key]
    return None


def _only(path: object, content: Mapping[str, Any]) -> Mapping | None:
    found = _dicts(content)
    if len(found) > 1:
        raise UserError(
            f"{path}: holds weights under {', '.join(sorted(found))}, and none under {' or '.join(PREFERRED)}; "
            f"write the ones that you mean to a file of their own, as {{'{PREFERRED[0]}': ...}}"
        )
    return next(iter(found.values()), None)


def _dicts(content: Mapping[str, Any], depth: int = 3) -> dict[str, Mapping]:
    """The dicts in `content` that may be a network's weights, by their keys; deeper ones where there are none."""
    inner = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, dict)}
    inner = {key: value for key, value in inner.items() if not key.lower().startswith("optim")}
    tensors = {key: value for key, value in inner.items() if value and _holds_tensors(value)}
    # Statistics, metrics and the states of random generators are dicts of tensors too, and have no matrices.
    networks = {key: value for key, value in tensors.items() if any(tensor.ndim > 1 for tensor in value.values())}
    if networks or tensors or depth == 1:
        return networks or tensors
    return {f"{key}/{name}": value for key, entry in inner.items() for name, value in _dicts(entry, depth - 1).items()}


def _holds_tensors(value: Mapping) -> bool:
    return all(
        isinstance(entry, torch.Tensor) and isinstance(name, str)
        for name, entry in value.items()
        if not str(name).endswith("_extra_state")
    )


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without the names of wrappers, and without what all names begin with."""
    names = list(names)
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] or [name] for name in names}
    if len({tuple(own) for own in parts.values()}) < len(names):  # two names that differ in these alone
        parts = {name: name.split(".") for name in names}
    while all(len(own) > 1 for own in parts.values()) and len({own[0] for own in parts.values()}) == 1:
        parts = {name: own[1:] for name, own in parts.items()}
    return {name: ".".join(own) for name, own in parts.items()}


def matched(weights: Weights, own: Iterable[str]) -> Weights:
    """The weights by the names that a network's `own` entries have: today's, and with its own beginning.

    Names that match none stay as they are, but for auxiliary heads that the network has not.
    """
    full = {short: name for name, short in short_names(own).items()}
    has_heads = any(name.startswith(AUXILIARY) for name in full)
    found = {}
    for name, tensor in weights.items():
        if name not in full:
            if name.startswith(AUXILIARY) and not has_heads:
                continue
            name = _renamed(name, full)
        found[full.get(name, name)] = tensor
    return found


def _renamed(name: str, known: Mapping[str, str]) -> str:
    new = name
    for pattern, replacement in RENAMED:
        new = re.sub(pattern, replacement, new)
    return new if new in known else name


def require_finite(weights: Mapping[str, torch.Tensor], path: str) -> None:
    """Raises UserError naming the first entry that holds NaN or infinity."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise UserError(
                f"{path}: {name} holds NaN or infinity in {int((~finite).sum())} of its {tensor.numel()} values; its "
                "training went wrong, or the file is damaged: give another checkpoint, such as one of an earlier epoch"
            )
