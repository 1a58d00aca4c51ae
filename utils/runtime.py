"""Where and how the numbers are computed: device, precision, compilation, random streams, memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import random
import resource
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Callable, Iterator

import numpy as np
import torch

from utils import ranks, winograd
from utils.files import UserError

# Steps that repay the half minute to minute that torch.compile takes once. In low precision on a CPU the work
# between the convolutions is most of a step, and fusing it saves most; in fp32 the convolutions are.
COMPILE_FROM_STEPS = 2000
COMPILE_FROM_STEPS_LOW_CPU = 300


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of its matrix products, and whether steps are compiled.

    Statistics, losses and optimiser states stay in fp32 whatever the precision is.
    """

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    compile: str  # auto, on or off

    @classmethod
    def create(cls, device: str = "auto", precision: str = "auto", compile: str = "auto") -> "Runtime":
        """Resolve `auto`. Raises UserError for a device that is not there."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        available = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if device == "cuda" and torch.cuda.is_available():
            # Under torchrun every process of a machine takes a GPU of its own.
            local_rank = os.environ.get("LOCAL_RANK", "0")
            device = f"cuda:{int(local_rank) % torch.cuda.device_count() if local_rank.isdigit() else 0}"
        if device not in available:
            raise UserError(f"--device {device}: not there; available: {', '.join(available)}")
        resolved = torch.device(device)
        if precision == "auto":
            precision = "bf16" if _has_bf16(resolved) else "fp32"
        if compile == "on" and not _has_compiler(resolved):
            raise UserError("--compile on: no C++ compiler found on PATH; install g++ or give --compile off")
        _settle_backends(resolved)
        return cls(resolved, precision, compile)

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss for fp16, whose small gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.to(self.device, memory_format=torch.channels_last)

    def frozen(self, module: torch.nn.Module) -> torch.nn.Module:
        """`module` placed, in eval mode and without gradients; for networks that only guide or label.

        Its large weights are kept in the runtime's precision, or autocast would cast them again at each step; in fp32
        on a CPU, which is bound by multiplications, its widest convolutions get along with fewer.
        """
        if self.device.type == "cpu" and self.precision == "fp32":
            winograd.replace(module)
        for layer in module.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                layer.to(self.dtype)
        return self.place(module.eval().requires_grad_(False))

    def normalised(self, images: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
        """uint8 images (N, 3, H, W), 0 to 255 -> normalised fp32 on the device, channels_last."""
        images = images.to(self.device, non_blocking=True)
        shift, scale = _per_channel(self.device, mean, std)
        return ((images / 255 - shift) / scale).contiguous(memory_format=torch.channels_last)

    def compiled(self, function: Callable, steps: int) -> Callable:
        """`function` of tensors, compiled if the `steps` ahead repay it. Their first dimension may vary.

        Compilations are cached on disk by torch: the next process takes seconds for them. On a GPU the kernels of a
        call are replayed as one CUDA graph, but for ranks that train together.
        """
        if not self.compiles(steps):
            return function
        # A graph would hold the exchange between ranks, which is not the same in every step.
        graphs = self.device.type == "cuda" and ranks.world() == 1
        faster = torch.compile(function, mode="reduce-overhead" if graphs else None)

        def call(*tensors: torch.Tensor) -> torch.Tensor:
            for tensor in tensors:
                # One compilation serves every number of images: rounds add some, last batches lack some.
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            return faster(*tensors)

        return call

    def compiles(self, steps: int) -> bool:
        """Whether `steps` repay a compilation, or it was asked for, and a compiler is there."""
        low_cpu = self.device.type == "cpu" and self.precision != "fp32"
        repaid = steps >= (COMPILE_FROM_STEPS_LOW_CPU if low_cpu else COMPILE_FROM_STEPS)
        return self.compile != "off" and (repaid or self.compile == "on") and _has_compiler(self.device)

    def peak_memory_mb(self) -> float:
        """Peak memory of this process in MiB: resident on a CPU, allocated on a GPU."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

    def __str__(self) -> str:
        return f"{self.device} {self.precision}"


@functools.cache
def _per_channel(device: torch.device, *values: tuple) -> tuple[torch.Tensor, ...]:
    """Each of `values` (3,) as (3, 1, 1) on the device; kept, because every transfer would make the host wait."""
    with torch.inference_mode(False):  # an inference tensor would be of no use to a later training
        return tuple(torch.tensor(value, device=device).view(3, 1, 1) for value in values)


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed by a unit of its own; emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(check() for check in checks if check)


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


def _settle_backends(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # Same command, same bytes: cuBLAS needs this set before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    elif _has_glibc():
        # glibc returns every large tensor to the kernel and pays page faults for the next one: keeping the
        # memory makes a step about 1.5 times as fast. -4: M_MMAP_MAX, -1: M_TRIM_THRESHOLD, -2: M_TOP_PAD.
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-2, 64 << 20)


def release_memory() -> None:
    """Give back what was freed, to the device and to the system."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if _has_glibc():
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def stream_seed(*names: object) -> int:
    """A seed for the random stream with these names, e.g. stream_seed(seed, "recover", unit)."""
    text = "\x1f".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*names: object) -> torch.Generator:
    """A CPU generator for the random stream with these names."""
    return torch.Generator().manual_seed(stream_seed(*names))


@contextlib.contextmanager
def seeded(*names: object) -> Iterator[None]:
    """Run a block of library code that draws from the global generators on a named stream, then restore them.

    torchvision draws from torch's, timm's RandAugment from Python's and NumPy's.
    """
    seed = stream_seed(*names)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
    return {"python": platform.python_version(), **found}
