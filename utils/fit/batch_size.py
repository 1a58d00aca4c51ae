"""--batch-size auto: the largest batch that fits into memory."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils.nets.frozen import frozen
from utils.nets.teacher import Teacher
from utils.run import distributed
from utils.run.device import Runtime, release_memory
from utils.run.errors import UserError
from utils.run.files import digest, make_folder, read_json, write_json
from utils.run.locks import FileLock
from utils.run.memory import AUTO, is_out_of_memory
from utils.run.outputs import beside

MARGIN = 1 / 4  # of the images tried above those that will be: a batch is not all that needs memory


def find_batch_size(default: int, least: int, output: str | Path, trial: Callable[[int], None], **work: object) -> int:
    """`default`, halved until `trial` of so many images finds enough memory.

    Ranks that train together try their own shares of a batch, and all must find enough. The size found is kept in a
    hidden file beside `output`, so that the same command resumes with the same batches; `work` names (JSON-able)
    what the memory depends on, such as the network, the input size, the precision and the device: other work finds a
    size of its own. Raises UserError if not even `least` images fit.
    """
    note, ranks = beside(output, "batch-size"), distributed.get_world_size()
    name = digest({**work, "default": default, "least": least, "ranks": ranks})
    size = distributed.by_main(lambda: _read(note).get(name))
    if size is None:
        size = default
        while not all(distributed.all_gather(_fits(trial, _share(size, ranks)))):
            if size == least:
                raise UserError(
                    f"out of memory even with --batch-size {size}, and no smaller one is possible; take another "
                    "device, or smaller images"
                )
            size = max(size // 2, least)
        size = distributed.by_main(lambda: _write_once(note, name, size))
    print(f"--batch-size {AUTO}: {size}")
    return size


def _share(size: int, ranks: int) -> int:
    """The most images that one rank has of a batch."""
    return size if ranks == 1 else max(math.ceil(size / ranks), distributed.MIN_LOCAL_BATCH)


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


def _read(note: Path) -> dict[str, int]:
    """What was found for which work."""
    try:
        found = read_json(note) if note.exists() else {}
    except UserError:  # damaged: as good as none
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: size for name, size in entries if type(size) is int and size > 0}


def _write_once(note: Path, name: str, size: int) -> int:
    """Note the size, unless a process that has no connection to this one was faster: all take what it noted."""
    make_folder(note.parent)
    lock = FileLock.at(note.with_name(f"{note.name}.lock"))
    with lock:
        found = _read(note)
        if name not in found:
            write_json(note, {**found, name: size})
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held
    return found.get(name, size)


def try_training_step(model: nn.Module, images: int, size: int, runtime: Runtime) -> None:
    """One step of `model` on random images (N, 3, size, size), with as many optimiser states as any recipe has."""
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


def find_evaluation_batch_size(default: int, output: str | Path, teacher: Teacher, runtime: Runtime) -> int:
    """`find_batch_size` for a teacher that is only asked; its network stays as it is."""

    def trial(images: int) -> None:
        network = frozen(copy.deepcopy(teacher.network), runtime)
        try_evaluation(network, images, teacher.geometry.input_size, runtime)

    work = {"teacher": teacher.sha256, "size": teacher.geometry.input_size, **runtime.kind}
    return find_batch_size(default, 1, output, trial, **work)


def _random(images: int, size: int, runtime: Runtime) -> torch.Tensor:
    return torch.rand(images, 3, size, size, device=runtime.device).contiguous(memory_format=torch.channels_last)
