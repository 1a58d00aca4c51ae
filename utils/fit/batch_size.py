"""--batch-size auto: the largest batch that fits into memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Callable

import torch
from filelock import FileLock
from torch import nn
from torch.nn.functional import cross_entropy

from utils.run import distributed
from utils.run.device import Runtime, release_memory
from utils.run.errors import UserError
from utils.run.files import make_folder, write_text
from utils.run.memory import AUTO, is_out_of_memory

MARGIN = 1 / 4  # of the images tried above those that will be: a batch is not all that needs memory


def find_batch_size(default: int, least: int, output: str | Path, trial: Callable[[int], None]) -> int:
    """`default`, halved until `trial` of so many images finds enough memory.

    The size found is kept in a hidden file beside `output`, so that the same command resumes with the same batches,
    and all ranks have the same ones. Raises UserError if not even `least` images fit.
    """
    output = Path(output)
    note = output.with_name(f".{output.name}.batch-size")
    if not note.exists():
        size = default
        while not _fits(trial, size):
            if size == least:
                raise UserError(
                    f"out of memory even with --batch-size {size}, and no smaller one is possible; take another "
                    "device, or smaller images"
                )
            size = max(size // 2, least)
        size = -distributed.all_reduce_max(-size)[0]
        _write_once(note, size)
    distributed.barrier()
    size = int(note.read_text())
    print(f"--batch-size {AUTO}: {size}")
    return size


def _fits(trial: Callable[[int], None], size: int) -> bool:
    try:
        trial(size + math.ceil(size * MARGIN))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        release_memory()
    return True


def _write_once(note: Path, size: int) -> None:
    """Write the note, unless another process was faster: all take the size that is there."""
    make_folder(note.parent)
    lock = FileLock(note.with_name(f"{note.name}.lock"))
    with lock:
        if not note.exists():
            write_text(note, f"{size}\n")
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held


def try_training_step(model: nn.Module, images: int, size: int, runtime: Runtime) -> None:
    """One step of `model` on random images (N, 3, size, size), with as many optimiser states as any recipe has.

    A rank's part of a batch is smaller: what fits here fits there.
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
def try_evaluation(model: nn.Module, images: int, size: int, runtime: Runtime) -> None:
    """`model` (on the device) on random images."""
    with runtime.autocast():
        model(_random(images, size, runtime)).float().sum().item()


def _random(images: int, size: int, runtime: Runtime) -> torch.Tensor:
    return torch.rand(images, 3, size, size, device=runtime.device).contiguous(memory_format=torch.channels_last)
