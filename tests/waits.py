"""Finds what makes the host wait for a GPU, by the operations that were called: a CPU calls the same ones."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They bring a number, or a size that depends on values, to the host.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "repeat_interleave")


class Waits(TorchDispatchMode):
    """`found` has the names of such operations, in their order; `called` those of all."""

    def __init__(self):
        super().__init__()
        self.found, self.called = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        self.called.add(name)
        if name in WAITING or (name.strip("_").startswith("index") and _has_mask(args)):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def _has_mask(args):
    """Whether an index is one of true and false, whose number of trues is the size of the result."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(torch.is_tensor(index) and index.dtype == torch.bool for index in indices)
