"""Where and how the numbers are computed: device, precision, compilation, memory."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import resource
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
import torch.utils.deterministic

from utils.run import distributed, threads
from utils.run.cpus import available_cpus
from utils.run.errors import UserError, first_line

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COMPILE = ("auto", "on", "off")
DETERMINISTIC = ("on", "off")

# Steps that repay the half minute to minute that torch.compile takes once. In low precision on a CPU the work
# between the convolutions is most of a step, and fusing it saves most; in fp32 the convolutions are.
COMPILE_FROM_STEPS = 2000
COMPILE_FROM_STEPS_LOW_CPU = 300
COMPILATIONS = 64  # of one function at most
COMPILER = ("torch._dynamo", "torch._inductor", "torch.fx")  # where the errors of torch.compile are defined


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of its matrix products, and whether steps are compiled.

    Statistics, losses and optimiser states stay in fp32 whatever the precision is.
    """

    device: torch.device
    precision: str  # fp32, bf16 or fp16
    compile: str  # auto, on or off
    deterministic: bool = True  # of a GPU: the same command on the same machine gives the same bytes

    @classmethod
    def create(
        cls, device: str, precision: str = "auto", compile: str = "auto", deterministic: str = "on"
    ) -> "Runtime":
        """Resolve `auto`. Raises UserError for a device that is not there, or that this PyTorch cannot use."""
        resolved = torch.device("cpu" if device == "cpu" else _found(device))
        if compile == "on" and not _has_compiler(resolved):
            kind, name = ("C", "gcc") if resolved.type == "cuda" else ("C++", "g++")
            raise UserError(f"--compile on: no {kind} compiler found on PATH; install {name} or give --compile off")
        _configure_backends(resolved, deterministic == "on")
        if precision == "auto":
            precision = _fastest_precision(resolved)
        return cls(resolved, precision, compile, deterministic == "on")

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def kind(self) -> dict[str, str]:
        """What the memory that the same work needs, and has, depends on."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"device": name, "precision": self.precision}

    @property
    def identity(self) -> dict[str, str]:
        """What decides the bytes of a result; for the identity of a run."""
        unsure = self.device.type == "cuda" and not self.deterministic
        return {"precision": self.precision, "compile": self.compile, **({"deterministic": "off"} if unsure else {})}

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32")

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Scales the loss for fp16, whose small gradients would vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        return module.to(self.device, memory_format=torch.channels_last)

    def compiled(self, function: Callable, steps: int, graphs: bool = True) -> Callable:
        """`function` of tensors, compiled if the `steps` ahead repay it. Their first dimension may vary.

        Compilations are cached on disk by torch: the next process takes seconds for them. On a GPU the kernels of a
        call are replayed as one CUDA graph, unless ranks train together or `graphs` is False: not where gradients of
        parameters are added up over several calls, as they lie in a graph's memory, which the next call uses again
        (github.com/pytorch/pytorch/issues/169545).
        """
        if not self.compiles(steps):
            return function
        # Several teachers in turn, each at several sizes, are one function to torch; beyond its limit it gives up.
        config = torch._dynamo.config
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # before 2.6
        setattr(config, limit, COMPILATIONS)
        # A graph would hold the exchange between ranks, which is not the same in every step.
        graphs = graphs and self.device.type == "cuda" and distributed.get_world_size() == 1
        # In the midst of a bar it would say that a CUDA build of PyTorch found no GPU, which nobody asked for.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if self.device.type == "cuda" and self.deterministic:
            _forbid_timed_choices()
        faster = torch.compile(function, mode="reduce-overhead" if graphs else None)
        return _Compiled(function, _copied(faster) if graphs else faster, required=self.compile == "on")

    def compiles(self, steps: int) -> bool:
        """Whether `steps` repay a compilation, or it was asked for, and a compiler is there."""
        low_cpu = self.device.type == "cpu" and self.precision != "fp32"
        repaid = steps >= (COMPILE_FROM_STEPS_LOW_CPU if low_cpu else COMPILE_FROM_STEPS)
        return self.compile != "off" and (repaid or self.compile == "on") and _has_compiler(self.device)

    def require_numbers(self, found: torch.Tensor, what: str, paths: Sequence[Path]) -> None:
        """See to it that a network's `what` of the images `paths`, a row of `found` (N, ...) each, is all numbers.

        Raises UserError naming the first image of which it holds NaN or infinity.
        """
        if (finite := found.isfinite().reshape(len(found), -1).all(1)).all():
            return
        advice = "" if self.precision == "fp32" else "--precision fp32, or "
        raise UserError(
            f"{paths[int(finite.int().argmin())]}: the teacher's {what} of this image holds NaN or infinity, though "
            f"its weights are numbers (precision {self.precision}); give {advice}another teacher"
        )

    def peak_memory_mb(self) -> float:
        """Peak memory of this process in MiB: resident on a CPU, allocated on a GPU."""
        if self.device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)

    def __str__(self) -> str:
        tf32 = self.precision == "fp32" and self.device.type == "cuda" and _computes_tf32(self.device)
        return f"{self.device} {self.precision}{' (convolutions in TF32)' if tf32 else ''}"


class _Compiled:
    """A compiled function of tensors, or the function itself once it has shown that it cannot be compiled."""

    def __init__(self, function: Callable, faster: Callable, required: bool):
        self.function, self.faster, self.required = function, faster, required

    def __call__(self, *tensors: torch.Tensor | None) -> torch.Tensor:
        for tensor in filter(torch.is_tensor, tensors):
            # One compilation serves every number of images: rounds add some, last batches lack some. A single image
            # has one of its own, as torch.compile never takes a size of 1 for a variable one.
            if tensor.ndim and len(tensor) > 1:
                torch._dynamo.mark_dynamic(tensor, 0)
            # Images of another size have one, too, which is faster than one for sizes that vary.
            for axis in range(1, tensor.ndim):
                torch._dynamo.mark_static(tensor, axis)
        try:
            return self.faster(*tensors)
        except Exception as error:
            if self.faster is self.function or not type(error).__module__.startswith(COMPILER):
                raise
            reason = _reason(error)
            if self.required:
                raise UserError(f"--compile on: torch.compile failed ({reason}); give --compile off") from None
            print(f"torch.compile failed ({reason}); continuing without it")
            self.faster = self.function
            return self.function(*tensors)


def _copied(graph: Callable) -> Callable:
    """What `graph` returns, in memory of its own: that of a CUDA graph's outputs is the next replay's, of any graph."""

    def call(*tensors: torch.Tensor | None) -> Any:
        found = graph(*tensors)
        return found.clone() if torch.is_tensor(found) else tuple(part.clone() for part in found)

    return call


def _forbid_timed_choices() -> None:
    """Let the compiler choose no kernel by how long it takes: another choice sums in another order."""
    from torch._inductor import config

    if hasattr(config, "deterministic"):  # from PyTorch 2.9 on
        config.deterministic = True


def _reason(error: Exception) -> str:
    """What torch.compile says of itself, and the first error of the compiler where it was the one to fail."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # Not a line of the long command that failed, which may name anything.
    said = lines[lines.index("Output:") + 1 :] if "Output:" in lines else []
    said = [line for line in said if re.search(r"\berror\b", line, re.IGNORECASE)]
    return ": ".join([lines[0], *said[:1]])


def _found(device: str) -> str:
    """The device that is asked for, with its number. Not asked for a CPU, so that no GPU is touched then.

    Raises UserError for one that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    available = ["cpu"] + [f"cuda:{number}" for number in range(gpus)]
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and gpus:
        # Under torchrun every process of a machine takes a GPU of its own.
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{int(local_rank) % gpus if local_rank.isdigit() else 0}"
    if device not in available:
        raise UserError(f"--device {device}: not there; available: {', '.join(available)}")
    return device


def transfer(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on the device; the host does not wait, as it would for a copy from memory that is not page-locked."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def uses_gpu() -> bool:
    """Whether this process computes on a GPU. Asks none, and starts none."""
    return torch.cuda.is_initialized()


def _fastest_precision(device: torch.device) -> str:
    """bf16 or fp16 where a unit of its own computes it: emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (8, 0):
            return "bf16"
        # GTX 16: convolutions in fp16 give NaN (github.com/pytorch/pytorch/issues/58123).
        return "fp16" if capability >= (7, 0) and "GTX 16" not in torch.cuda.get_device_name(device) else "fp32"
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return "bf16" if any(check() for check in checks if check) else "fp32"


def _computes_tf32(device: torch.device) -> bool:
    """Whether convolutions of fp32 round their factors to 10 bits, as PyTorch lets them where there is a unit."""
    return torch.backends.cudnn.allow_tf32 and torch.cuda.get_device_capability(device) >= (8, 0)


def _has_compiler(device: torch.device) -> bool:
    if device.type == "cuda":  # Triton compiles what starts its kernels
        return any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


def _start_gpu(device: torch.device) -> None:
    """Raises UserError where nothing can be computed on it: nothing else is to find that out, hours later."""
    try:
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        reason = first_line(error)
        if "no kernel image" in reason:
            capability = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
            reason += (
                f"; it is {capability}, and this PyTorch {torch.__version__} is built for "
                f"{', '.join(torch.cuda.get_arch_list())}: install a build that has {capability}"
            )
        raise UserError(f"--device {device}: cannot be used ({reason}); another device, or cpu, would do") from None


def _configure_backends(device: torch.device, deterministic: bool) -> None:
    if "OMP_NUM_THREADS" not in os.environ:  # which says it, and torchrun sets it
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    if device.type == "cuda":
        if deterministic:
            # Same command, same bytes: cuBLAS needs this set before its first call.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        # It would fill all memory that an operation is about to write: a kernel more for each, for nothing.
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = not deterministic  # it chooses by time
        _start_gpu(device)  # as `uses_gpu` is asked before anything is computed
        return
    threads.require(torch.get_num_threads())
    torch.zeros(1 << 20).add_(1)  # starts them, where they are known to be possible
    if _has_glibc():
        # glibc returns every large tensor to the kernel and pays page faults for the next one: keeping the
        # memory makes a step about 1.5 times as fast. -4: M_MMAP_MAX, -1: M_TRIM_THRESHOLD, -2: M_TOP_PAD.
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-2, 64 << 20)


def release_memory() -> None:
    """Give back what was freed, to the device and to the system."""
    if uses_gpu():
        torch.cuda.empty_cache()
    if _has_glibc():
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _has_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def versions() -> dict[str, str]:
    """The versions of the libraries that decide what is drawn and computed."""
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")}
    return {"python": platform.python_version(), **found}
