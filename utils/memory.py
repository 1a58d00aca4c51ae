"""Out of memory: said with the batch size that was too large, or avoided by looking for one that fits."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Callable, Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils import ranks
from utils.files import UserError
from utils.runtime import Runtime, release_memory

AUTO = "auto"
Function = Callable[[torch.Tensor], torch.Tensor]  # images -> one row for each
MARGIN = 1 / 4  # of the images tried above those that will be: other things come and go beside a batch


def exhausted(error: BaseException) -> bool:
    """Whether `error` says that memory ran out, on whatever device."""
    text = str(error)
    # oneDNN says no more than "could not create a primitive" when it finds no place for its code.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or text == "could not create a primitive" or \
        isinstance(error, RuntimeError) and any(words in text for words in (
            "DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "can't start new thread"))


@contextlib.contextmanager
def guarded(batch_size: int, least: int = 1) -> Iterator[None]:
    """Raises UserError in place of an allocation that failed within: what was tried, and what may fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        half = max(batch_size // 2, least)
        advice = f"give --batch-size {half}, or --batch-size {AUTO}, which halves until it fits" if half < batch_size else \
            "no smaller one is possible; take another device, or smaller images"
        raise UserError(f"out of memory with --batch-size {batch_size}; {advice}") from None


def fitting(asked: int | str | None, default: int, least: int, output: str | Path, trial: Callable[[int], None]) -> int:
    """The batch size: as asked, the default where nothing was, and for `auto` the default halved until `trial` passes.

    What fitted is kept in a hidden file beside `output`, so that the same command goes on with the same batches, and all
    ranks have the same ones. Raises UserError if not even `least` images fit.
    """
    if asked != AUTO:
        return asked or default
    output = Path(output)
    note = output.with_name(f".{output.name}.batch-size")
    if not note.exists():
        size = default
        while not _passes(trial, size):
            if size == least:
                raise UserError(f"out of memory even with --batch-size {size}, and no smaller one is possible; take another "
                                "device, or smaller images")
            size = max(size // 2, least)
        size = -ranks.highest(-size)[0]
        _keep_first(note, size)
    ranks.wait()
    size = int(note.read_text())
    print(f"--batch-size {AUTO}: {size}")
    return size


def _passes(trial: Callable[[int], None], size: int) -> bool:
    try:
        trial(size + math.ceil(size * MARGIN))
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        return False
    finally:
        release_memory()
    return True


def _keep_first(note: Path, size: int) -> None:
    """Write the note, unless another process was faster: its word holds."""
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f"{note.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(f"{size}\n")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, note)
    finally:
        temporary.unlink(missing_ok=True)


def in_halves(function: Function, images: torch.Tensor) -> torch.Tensor:
    """`function(images)`, or of their halves where memory does not suffice for all; for networks in eval mode."""
    try:
        return function(images)
    except (MemoryError, RuntimeError) as error:
        if len(images) == 1 or not exhausted(error):
            raise
    release_memory()  # what the allocator keeps is of no use to others, such as a convolution's compiler
    return torch.cat([in_halves(function, half) for half in images.chunk(2)])


def at_once(function: Function, images: torch.Tensor) -> torch.Tensor:
    return function(images)


def way(asked: int | str | None) -> Callable[[Function, torch.Tensor], torch.Tensor]:
    """How to put a batch through a network: all of it where the user asked for its size, else in halves if need be."""
    return in_halves if asked == AUTO else at_once


def training_step(model: nn.Module, images: int, size: int, runtime: Runtime) -> None:
    """One step of `model` on random images (N, 3, size, size), with as many optimiser states as any recipe has.

    A rank's share is a part of them only: what fits here fits there.
    """
    trained = runtime.place(model).train()
    optimizer = torch.optim.AdamW(trained.parameters(), fused=True)
    with runtime.autocast():
        logits = trained(_random(images, size, runtime))
        loss = cross_entropy(logits.float(), torch.zeros(images, dtype=torch.long, device=runtime.device))
    loss.backward()
    optimizer.step()
    loss.item()  # waits for the device, whose errors come late


@torch.no_grad()
def evaluation(model: nn.Module, images: int, size: int, runtime: Runtime) -> None:
    """`model` (on the device) on random images."""
    with runtime.autocast():
        model(_random(images, size, runtime)).float().sum().item()


def _random(images: int, size: int, runtime: Runtime) -> torch.Tensor:
    return torch.rand(images, 3, size, size, device=runtime.device).contiguous(memory_format=torch.channels_last)
