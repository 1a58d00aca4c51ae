"""Statistics files: what the layers of a network get of the real images, from `python -m squeeze.statistics`.

A safetensors file. For the layers that are called, NAME by NAME in the order of the modules:

    NAME.mean  NAME.var                      (C,)    of convolutions: of the input's channels
    NAME.patch_mean  NAME.patch_var          (P,)    and of the patches of the map (utils/nets/moments.py)

each the mean over batches of the statistics within a batch, weighted by the batch's share of the images (G-VBSM). With
statistics of the classes, in label order, also

    NAME.class_mean  NAME.class_var          (K, C)  means over a class's images of each image's own (EDC)
    NAME.class_patch_mean  .class_patch_var  (K, P)  the same of convolutions' patches
    NAME.class_total_var                     (K, C)  of BatchNorms: over all of a class's images and pixels (WMDD); the
                                                     mean over them is class_mean

A file of `python -m squeeze.barycenters` is of the same kind, without layers: for each class in label order the points
that stand for its images' penultimate features, `points` (K, N, D), and their weights, `weights` (K, N), whose sum in a
class is 1 (WMDD).

Its metadata are one JSON object: `settings`, all that decides the values, and `layers`, all that are called:
what all images are to a BatchNorm, its own running averages say.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.files import differences, read_json, sha256, write_bytes, write_json

COMMAND, BARYCENTERS = "python -m squeeze.statistics", "python -m squeeze.barycenters"
FORMAT = 2  # of files without tensors of BatchNorms; the first one had no BatchNorms among its layers
ENTRY = "statistics"  # of the metadata: safetensors keeps no order of several
CONVOLUTION, BATCHNORM = "convolution", "batchnorm"
PARTS = {CONVOLUTION: ("mean", "var", "patch_mean", "patch_var"), BATCHNORM: ("mean", "var")}


@dataclass(frozen=True)
class Layer:
    """A layer that is called, and how many numbers its input's statistics have."""

    name: str
    kind: str
    channels: int
    patches: int  # 0 for BatchNorms


@dataclass(frozen=True)
class Statistics:
    """A file's content."""

    path: str
    sha256: str  # of the file
    settings: Mapping[str, Any]
    layers: tuple[Layer, ...]
    tensors: Mapping[str, torch.Tensor]

    @property
    def command(self) -> str:
        """What makes a file of this kind."""
        return BARYCENTERS if "points" in self.tensors else COMMAND

    def require(self, teacher: Teacher, per_class: bool = False) -> None:
        """Raises UserError where they are another network's, or do not hold what is asked for."""
        # Earlier versions had a flag for BatchNorms' `mean` and `var`, which nothing reads.
        has_norms = "points" in self.tensors or self.settings.get("per_class") or self.settings.get("norms")
        if not has_norms and self.settings.get("format") != FORMAT:
            raise UserError(
                f"--statistics {self.path}: is another version's; collect them anew: {self.command} --overwrite"
            )
        if self.settings.get("teacher") != teacher.sha256:
            raise UserError(
                f"--statistics {self.path}: was collected with another teacher ({self.settings.get('arch')}, SHA-256 "
                f"{str(self.settings.get('teacher'))[:12]}...) than this {teacher.arch} ({teacher.sha256[:12]}...); "
                f"give one file for each teacher, in their order, or collect them anew: {self.command}"
            )
        for name, own in teacher.identity().items():
            if self.settings.get(name) != own:
                raise UserError(
                    f"--statistics {self.path}: was collected with {name} {self.settings.get(name)}, and the teacher's "
                    f"is {own} here; collect them anew: {self.command}"
                )
        classes, known = self.settings.get("classes"), teacher.geometry.classes
        if known is not None and list(known) != classes:
            raise UserError(
                f"--statistics {self.path}: has the classes in another order than the teacher; {self.command}"
            )
        if per_class and not self.settings.get("per_class"):
            raise UserError(f"--statistics {self.path}: was collected without --per-class; {self.command} --per-class")


def require_order(path: str | Path, classes: Sequence[str]) -> None:
    """Raises UserError where the file has the same `classes` in another order: each would be guided by another's."""
    found = _facts(path)["settings"].get("classes")
    if isinstance(found, list) and found != list(classes) and sorted(map(str, found)) == sorted(classes):
        raise UserError(
            f"--statistics {path}: has the classes in another order than the images that are recovered; give both the "
            f"same --classes, or collect the file anew: {COMMAND}"
        )


def measurable(network: nn.Module) -> dict[str, str]:
    """Name -> kind of each convolution and BatchNorm of a network, in the order of its modules.

    A BatchNorm without running statistics is left out: nothing could be matched to them.
    """
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = CONVOLUTION
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            found[name] = BATCHNORM
    return found


def write(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    layers: list[Layer],
    seconds: float,
) -> None:
    """Write a file that `read` reads, whole or not at all.

    The `seconds` that it took stand in a file beside it: the same command gives the same bytes.
    """
    write_json(seconds_path(path), {"seconds": round(seconds, 1)})
    facts = {"settings": dict(settings), "layers": [asdict(layer) for layer in layers]}
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(held, {ENTRY: json.dumps(facts, sort_keys=True)})
    write_bytes(path, content)


def seconds_path(path: str | Path) -> Path:
    """Of the JSON file that says how many seconds the file of statistics took."""
    return Path(path).with_suffix(".json")


def check_seconds(path: str | Path) -> None:
    """To be called before the work for `path`. Raises UserError where what would say its seconds is another's file."""
    beside = seconds_path(path)
    if not beside.exists():
        return
    with contextlib.suppress(UserError):
        content = read_json(beside)
        if isinstance(content, dict) and set(content) == {"seconds"}:
            return
    raise UserError(
        f"--output {path}: {beside} would get the seconds that it takes, and holds something else; move that away, or "
        "choose another file"
    )


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a file alone. Raises UserError where it is none."""
    return _facts(path)["settings"]


def is_written(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the file is there. Raises UserError if it is of other settings."""
    if not path.exists():
        return False
    found = read_settings(path)
    if found != settings:
        raise UserError(
            f"--output {path}: holds another run ({differences(found, settings)}); choose another file, or give "
            "--overwrite"
        )
    return True


def read(path: str | Path) -> Statistics:
    """Raises UserError where the file is missing, damaged, or not one of statistics, or holds NaN or infinity."""
    facts = _facts(path)
    layers = tuple(Layer(**entry) for entry in facts["layers"])
    tensors = safetensors.torch.load_file(path)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is not finite; remove the file and collect it anew: {COMMAND}")
    return Statistics(str(path), sha256(path), facts["settings"], layers, tensors)


def _facts(path: str | Path) -> dict[str, Any]:
    if not Path(path).exists():
        raise UserError(f"{path}: no such file of statistics; collect them with `{COMMAND} --output {path}`")
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()[ENTRY])
        if isinstance(facts["settings"], dict) and isinstance(facts["layers"], list):
            return facts
    except Exception:  # whatever a file of another kind makes the reader raise
        pass
    raise UserError(f"{path}: is no file of statistics, or damaged; collect them with `{COMMAND}`")
