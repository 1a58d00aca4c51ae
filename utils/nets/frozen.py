"""Networks that only guide or label: frozen, prepared for speed, and compared with what they were before."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.nets import winograd
from utils.nets.layers import is_plain
from utils.nets.teacher import Teacher
from utils.run.device import Runtime
from utils.run.errors import UserError
from utils.run.seeds import generator

COMPARED = 8  # images at most that a network is compared on
# How far the outputs may be off, as a share of their norm, above what the precision does to the untouched network.
# What goes wrong in kind, such as a lost activation, is off by far more.
BOUNDS = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05}


def frozen(network: nn.Module, runtime: Runtime, teacher: Teacher | None = None) -> nn.Module:
    """`network` on the runtime's device, in eval mode and without gradients. It is changed in place.

    Its large weights are kept in the runtime's precision, or autocast would cast them again at each step; in fp32
    on a CPU, which is bound by multiplications, its widest convolutions get along with fewer. Where `network` is the
    `teacher`'s, its outputs are compared with those before: raises UserError if they differ.
    """
    untouched = Untouched.of(network, _noise(teacher.geometry), runtime) if teacher else None
    if runtime.device.type == "cpu" and runtime.precision == "fp32":
        winograd.replace(network)
    for layer in network.modules():
        if is_plain(layer, nn.Conv2d) or is_plain(layer, nn.Linear):
            layer.to(runtime.dtype)
    network = runtime.place(network.eval().requires_grad_(False))
    if teacher:
        untouched.compare(network, teacher.arch)
    return network


@dataclass(frozen=True)
class Untouched:
    """What a network says of a few images before it is prepared, in eval mode and full precision."""

    images: torch.Tensor  # on the device
    outputs: torch.Tensor
    bound: float  # of the difference
    runtime: Runtime

    @classmethod
    @torch.no_grad()
    def of(cls, network: nn.Module, images: torch.Tensor, runtime: Runtime) -> Untouched:
        """`images` (N, 3, S, S) normalised for it, of which the first COMPARED serve. `network` is not changed."""
        network = copy.deepcopy(network).eval().to(runtime.device)
        images = images[:COMPARED].to(runtime.device)
        with _full_precision(runtime):
            outputs = network(images).float()
        rounding = 0.0
        if runtime.device.type == "cuda" or runtime.precision != "fp32":
            with runtime.autocast():
                rounding = difference(network(images), outputs)
        return cls(images, outputs, BOUNDS[runtime.precision] + 3 * rounding, runtime)

    @torch.no_grad()
    def compare(self, prepared: nn.Module, arch: str) -> None:
        """Raises UserError where the `prepared` network, on the device, says something else, or either no number."""
        if not self.outputs.isfinite().all():
            raise UserError(f"{arch}: gives NaN or infinity for ordinary images; take another teacher")
        with self.runtime.autocast():
            found = difference(prepared(self.images), self.outputs)
        if found <= self.bound < float("inf"):
            return
        advice = "take another teacher" if self.runtime.precision == "fp32" else "give --precision fp32"
        raise UserError(
            f"{arch}: as prepared for {self.runtime}, its outputs differ from the untouched network's by {found:.2g} "
            f"of their norm, where rounding explains at most {self.bound:.2g}; {advice}"
        )


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|| found - expected || / || expected || of the image for which it is largest; infinite if not a number."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.double().flatten(1), expected.double().flatten(1)
    norms = torch.linalg.vector_norm(expected, dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    value = (torch.linalg.vector_norm(found - expected, dim=1) / norms).max().item()
    return value if value == value else float("inf")


def _full_precision(runtime: Runtime) -> contextlib.AbstractContextManager:
    """Without TF32, in which a GPU computes fp32 convolutions."""
    if runtime.device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


def _noise(geometry: Geometry) -> torch.Tensor:
    """Two images of noise, normalised."""
    pixels = torch.rand(2, 3, geometry.input_size, geometry.input_size, generator=generator("compared"))
    return geometry.normalise_pixels(pixels)
