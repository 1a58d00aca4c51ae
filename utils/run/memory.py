"""Out of memory: what it looks like, what to say of it, and what to do where a batch can be split."""

from __future__ import annotations

import contextlib
from typing import Callable, Iterator

import torch
from torch import nn

from utils.data.geometry import Geometry
from utils.run.device import Runtime, release_memory, uses_gpu
from utils.run.errors import UserError
from utils.run.threads import CANNOT_START, is_thread_limit

AUTO = "auto"  # the batch size that is found by trying

Function = Callable[[torch.Tensor], torch.Tensor]  # images -> one row for each


# What cuDNN and cuBLAS say where they find no memory, and for other reasons too.
VAGUE = ("unable to find an engine", "valid cuDNN algorithm", "CUDNN_STATUS_NOT_INITIALIZED", "CUBLAS_STATUS_NOT_INIT")
SHORT = 1 / 20  # of a GPU's memory; with less that is free they are believed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on whatever device."""
    text = str(error)
    if is_thread_limit(error):
        return False
    # oneDNN says no more than "could not create a primitive" when it finds no place for its code.
    words = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", CANNOT_START)
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or text == "could not create a primitive"
        or (isinstance(error, RuntimeError) and any(word in text for word in words))
        or (isinstance(error, RuntimeError) and any(word in text for word in VAGUE) and _is_gpu_full())
    )


def _is_gpu_full() -> bool:
    if not uses_gpu():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < SHORT * total


@contextlib.contextmanager
def explain_out_of_memory(batch_size: int, least: int = 1) -> Iterator[None]:
    """Raises UserError in place of an allocation that failed within: what was tried, and what may fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        half = max(batch_size // 2, least)
        if half < batch_size:
            advice = f"give --batch-size {half}, or --batch-size {AUTO}, which halves until it fits"
        else:
            advice = "no smaller one is possible; take another device, or smaller images"
        raise UserError(f"out of memory with --batch-size {batch_size}; {advice}") from None


def run_batch(function: Function, images: torch.Tensor, may_split: bool = False) -> torch.Tensor:
    """`function(images)`; `may_split`: in halves where memory does not suffice for all. For networks in eval mode."""
    try:
        return function(images)
    except (MemoryError, RuntimeError) as error:
        if not may_split or len(images) == 1 or not is_out_of_memory(error):
            raise
    release_memory()  # what the allocator keeps is of no use to others, such as a convolution's compiler
    return torch.cat([run_batch(function, half, may_split) for half in images.chunk(2)])


def ask(
    network: nn.Module, images: torch.Tensor, geometry: Geometry, runtime: Runtime, may_split: bool = True
) -> torch.Tensor:
    """What a network on the device says of uint8 images (N, 3, H, W), there: `run_batch` in the runtime's precision."""
    with runtime.autocast():
        return run_batch(lambda part: network(geometry.normalise(part, runtime.device)), images, may_split)
