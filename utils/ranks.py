"""The processes of one run, as torchrun or an array job starts them, and what they do together by torch.distributed."""

from __future__ import annotations

import contextlib
import datetime
import os
from typing import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from utils.files import UserError

# Waiting is no error: rank 0 may write or label for hours. A rank that dies is seen at once, by its connection or torchrun.
PATIENCE = datetime.timedelta(days=7)
SMALLEST_SHARE = 2  # images of a rank's batch: a single one has no variance for BatchNorm


def rank_and_world() -> tuple[int, int]:
    """This process's place by its environment; (0, 1) without one. Raises UserError for impossible values."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise UserError(f"RANK={rank} with WORLD_SIZE={world}: the rank must be a number from 0 to WORLD_SIZE - 1")
    return int(rank), int(world)


def launched() -> bool:
    """Whether torchrun started this process, with others beside it that write to the same terminal."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def speaks() -> bool:
    """Whether this process tells the user how things go: each one of an array job has a log of its own."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def first_to_fail() -> bool:
    """Whether no other process of this run has failed yet: one error is shown, and not what follows from it."""
    if not launched():
        return True
    try:
        # torchrun's own store: it is there before the ranks have joined, and after one has gone.
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                              wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
        return store.add(f"delt/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """All ranks as one group within: Gloo between CPUs, NCCL between GPUs. A process without others needs none.

    Raises UserError where ranks that work together were not started by torchrun, or have to share a GPU.
    """
    rank, world = rank_and_world()
    if world == 1:
        yield
        return
    if not launched():
        raise UserError(f"RANK={rank} and WORLD_SIZE={world} are set, but not by torchrun, and this stage's ranks work "
                        "together; start it by torchrun, or unset both")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and local > torch.cuda.device_count():
        raise UserError(f"{local} processes on a machine with {torch.cuda.device_count()} GPUs: processes that train "
                        f"together need one each; give --nproc-per-node {torch.cuda.device_count()}")
    # Decisions about saving and stopping travel between the CPUs, so that no GPU is waited for.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE,
                            device_id=device if device.type == "cuda" else None)
    yield
    # Not after an error: a rank that is gone would be waited for.
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all ranks are here."""
    if world() > 1:
        highest(0)


def highest(*values: int) -> list[int]:
    """The largest of each value over all ranks."""
    if world() == 1:
        return list(values)
    found = torch.tensor(values)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on the device of `values`."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def share(batch: Sequence[int]) -> list[int]:
    """This rank's part of a global batch: every world-size-th image, filled up with others to SMALLEST_SHARE.

    What fills up stands at the end, and `mean` does not count it: all ranks take part in every step, however few images it has.
    """
    if world() == 1:
        return list(batch)
    own = list(batch[rank()::world()])
    return own + list(batch[:max(0, SMALLEST_SHARE - len(own))])


def shares(keys: Iterable[tuple[tuple, Sequence[int]]]) -> Iterator[tuple[tuple, Sequence[int]]]:
    """This rank's part of each (stream name, batch), from a stream of its own where there are other ranks."""
    for name, batch in keys:
        yield (name, batch) if world() == 1 else ((*name, "rank", rank()), share(batch))


def mean(losses: torch.Tensor, size: int) -> torch.Tensor:
    """One loss for each image of this rank's share of a batch of `size` images -> what it backpropagates.

    DistributedDataParallel averages the ranks' gradients: the result is the gradient of the mean over the global batch.
    """
    own = len(range(rank(), size, world()))
    return losses[:own].sum() * (world() / size)


def wrapped(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, whose gradients are averaged over all ranks. Its weights become rank 0's."""
    if world() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def same_statistics(model: nn.Module) -> None:
    """Give every rank the BatchNorm statistics of rank 0, as each training step does at its start."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorm over the global batch. Raises UserError on a CPU, for which torch has none."""
    if device.type != "cuda":
        raise UserError("--sync-bn: torch has synchronised BatchNorm for GPUs only; leave it out on a CPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if world() > 1 else model


def is_loss_of_contact(error: RuntimeError) -> bool:
    """Whether another rank's end is what went wrong here."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
