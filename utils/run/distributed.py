"""The processes of one run, as torchrun or an array job starts them, and what they do together."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, ContextManager, Iterable, Iterator, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from utils.run import waiting
from utils.run.errors import UserError, listed
from utils.run.files import digest
from utils.run.signals import SIGNALS

Value = TypeVar("Value")

LAUNCHER = "DELT_LAUNCHER"  # in the environment of ranks whose launcher tells how they ended
MIN_LOCAL_BATCH = 2  # images of a rank's batch: a single one has no variance for BatchNorm


def rank_from_environment() -> tuple[int, int]:
    """(rank, world size) as torchrun or an array job sets them; (0, 1) without. Raises UserError where impossible."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world_size.isdigit() and int(rank) < int(world_size)):
        raise UserError(f"RANK={rank} with WORLD_SIZE={world_size}: the rank must be a number from 0 to WORLD_SIZE - 1")
    return int(rank), int(world_size)


def launched() -> bool:
    """Whether torchrun started this process, with others beside it that write to the same terminal."""
    return dist.is_available() and dist.is_torchelastic_launched()


def is_main_process() -> bool:
    """Whether this process reports to the user: rank 0; each one of an array job, which has a log of its own."""
    return not launched() or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def process_group(device: torch.device, wait: float = waiting.MINUTES) -> Iterator[None]:
    """All ranks as one group within: Gloo between CPUs, NCCL between GPUs. A process without others needs none.

    NCCL wants a GPU for each rank: those that have to share one are connected by Gloo, too.
    `wait`: how many minutes a rank waits for one of which it hears nothing (utils/run/waiting.py).
    Raises UserError where ranks that work together were not started by torchrun, or name one GPU for all of them.
    """
    rank, world_size = rank_from_environment()
    if world_size == 1:
        yield
        return
    if not launched():
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={world_size} are set, but not by torchrun, and this stage's ranks work "
            "together; start it by torchrun, or unset both"
        )
    nccl = device.type == "cuda" and _has_own_gpu(device)
    with SIGNALS.default():  # a rank that waits for one that failed has to end when torchrun says so
        limit = waiting.limit(wait)
        store, *_ = next(dist.rendezvous("env://", timeout=limit))
        store.set_timeout(limit)
        _require_one_connection(store, rank, world_size, "NCCL" if nccl else "Gloo")
        # Decisions about saving and stopping travel between the CPUs, so that no GPU is waited for.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if nccl else "gloo",
            timeout=limit,
            store=store,
            rank=rank,
            world_size=world_size,
            device_id=device if nccl else None,
        )
        waiting.start(wait)
    yield
    # Not after an error: a rank that is gone would be waited for.
    waiting.stop()
    dist.destroy_process_group()


def _require_one_connection(store: dist.Store, rank: int, world_size: int, own: str) -> None:
    """Raises UserError where ranks would be connected otherwise than this one: they would wait for each other."""
    store.set(f"connection of {rank}", own)
    for other in range(world_size):
        if (found := store.get(f"connection of {other}").decode()) != own:
            raise UserError(
                f"rank {other} would be connected by {found}, rank {rank} by {own}: on one of their machines processes "
                "outnumber the GPUs, or none can be used; give as many processes as each machine has GPUs, or "
                "--device cpu"
            )


def _has_own_gpu(device: torch.device) -> bool:
    """Whether each rank of this machine has a GPU for itself; else it is said that they share. The same on all of them.

    Raises UserError where there are enough, and `device` is not this rank's.
    """
    gpus, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > gpus:
        print(
            f"{ranks} processes share {gpus} GPU{'s' * (gpus > 1)}: slower than one for each (--nproc-per-node {gpus})"
        )
        return False
    if ranks > 1 and device.index != int(os.environ.get("LOCAL_RANK", "0")):
        raise UserError(
            f"--device {device}: processes that train together need a GPU each; give --device cuda, or one process"
        )
    return True


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all ranks, as long as those that have not come yet show signs of work."""
    if get_world_size() > 1:
        waiting.meet()


def all_reduce_max(*values: int) -> list[int]:
    """The largest of each value over all ranks."""
    if get_world_size() == 1:
        return list(values)
    found = torch.tensor(values)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on the device of `values`."""
    if get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order. Waits as `barrier` does."""
    if get_world_size() == 1:
        return [value]
    barrier()
    found = [None] * get_world_size()
    dist.all_gather_object(found, value)
    return found


def by_main(decide: Callable[[], Value]) -> Value:
    """What `decide` returns on rank 0, a plain value: ranks that read files for themselves may read other things.

    Where it raises an error, that is rank 0's. Waits as `barrier` does.
    """
    if get_world_size() == 1:
        return decide()
    found = [decide() if get_rank() == 0 else None]
    barrier()
    dist.broadcast_object_list(found, 0, device=torch.device("cpu"))
    return found[0]


def broadcast_bytes(read: Callable[[], bytes]) -> bytes:
    """`by_main` for many bytes."""
    if get_world_size() == 1:
        return read()
    content = read() if get_rank() == 0 else b""
    size = by_main(lambda: len(content))
    if not size:
        return b""
    tensor = torch.frombuffer(bytearray(content or bytes(size)), dtype=torch.uint8)
    dist.broadcast(tensor, 0)
    return tensor.numpy().tobytes()


def require_same(what: str, value: Any) -> None:
    """Raises UserError, which names `what` it is, where the ranks have different JSON-able values."""
    found = all_gather(digest(value))
    others = [rank for rank, own in enumerate(found) if own != found[0]]
    if others:
        raise UserError(
            f"rank {others[0]} and rank 0 do not see the same {what}: their files or flags differ, or the file system "
            "is late on one of their machines; run the same command again, with the same files on all machines"
        )


def local_batch(batch: Sequence[int]) -> list[int]:
    """This rank's part of a global batch: every world-size-th image, padded with others to MIN_LOCAL_BATCH.

    The padding stands at the end, and `global_mean` does not count it: all ranks take part in every step, however few
    images it has.
    """
    if get_world_size() == 1:
        return list(batch)
    own = list(batch[get_rank() :: get_world_size()])
    return own + list(batch[: max(0, MIN_LOCAL_BATCH - len(own))])


def local_batches(keys: Iterable[tuple[tuple, Sequence[int]]]) -> Iterator[tuple[tuple, Sequence[int]]]:
    """This rank's part of each (stream name, batch), from a stream of its own where there are other ranks."""
    for name, batch in keys:
        yield (name, batch) if get_world_size() == 1 else ((*name, "rank", get_rank()), local_batch(batch))


def global_mean(losses: torch.Tensor, batch_size: int, first: int = 0) -> torch.Tensor:
    """One loss for each image of this rank's part of a batch of `batch_size` images -> what it backpropagates.

    DistributedDataParallel averages the ranks' gradients: the result is the gradient of the mean over the global batch.
    Where the losses come in pieces, which are to be added up, `first` images of the part came before this one.
    """
    return losses[: max(_own(batch_size) - first, 0)].sum() * (get_world_size() / batch_size)


def batch_mean(values: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The mean over a global batch of `batch_size` images, of whose values this rank has its part."""
    return all_reduce_sum(values[: _own(batch_size)].sum()) / batch_size


def _own(batch_size: int) -> int:
    """This rank's images of a batch, without the padding of `local_batch`."""
    return len(range(get_rank(), batch_size, get_world_size()))


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, whose gradients are averaged over all ranks. Its weights become rank 0's."""
    if get_world_size() == 1:
        return model
    network = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    # BatchNorm reads its running statistics in tests alone, before which `broadcast_buffers` gives all ranks rank 0's.
    network.broadcast_buffers = False
    return network


def exchanging(network: nn.Module, last: bool) -> ContextManager[None]:
    """Within, one part of a step of a `data_parallel` network: the ranks exchange what all parts gave with the last."""
    return contextlib.nullcontext() if last or get_world_size() == 1 else network.no_sync()


def require_gradients(model: nn.Module) -> None:
    """To be called after a backward pass: DistributedDataParallel would not average the gradients of all parameters.

    Raises UserError where ranks train together, and a parameter took no part in the loss.
    """
    if get_world_size() == 1:
        return
    left_out = [name for name, own in model.named_parameters() if own.requires_grad and own.grad is None]
    if left_out:
        raise UserError(
            f"{len(left_out)} parameter{'s' * (len(left_out) > 1)} of the network ({listed(left_out, 3)}) took no part "
            "in the loss, and processes that train together average the gradient of each; train this network with one "
            "process"
        )


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the BatchNorm statistics of rank 0."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with BatchNorm over the global batch. Raises UserError on a CPU, for which torch has none."""
    if device.type != "cuda":
        raise UserError("--sync-bn: torch has synchronised BatchNorm for GPUs only; leave it out on a CPU")
    return synchronised(model) if get_world_size() > 1 else model


def synchronised(model: nn.Module) -> nn.Module:
    """`model` with SyncBatchNorm in the place of BatchNorm, with its activation where it carries one.

    Raises UserError where a BatchNorm is of a kind that has no synchronised form.
    """
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm  # here, as only this needs timm

    known = (nn.BatchNorm2d.forward, BatchNormAct2d.forward, nn.SyncBatchNorm.forward)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward not in known:
            raise UserError(f"--sync-bn: {type(module).__name__} has no synchronised form; leave it out")
    return convert_sync_batchnorm(model)


def keep_alive() -> None:
    """Show the ranks that wait for this one that it works; to be called now and then in long work of its own."""
    waiting.sign()


class ConnectionLost(Exception):
    """Another rank has ended, mostly, and its error is the one to show; this one only follows from it."""


def is_connection_error(error: RuntimeError) -> bool:
    """Whether `error` is of the connection between ranks, while they join or work together."""
    if not launched():
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def is_timeout(error: RuntimeError) -> bool:
    """Whether a connection error says that a rank has waited for the limit."""
    return "timed out" in str(error).lower() or "timeout" in str(error).lower()
