"""Networks that only guide or label: frozen, and prepared for speed."""

from __future__ import annotations

import torch
from torch import nn

from utils.nets import winograd
from utils.run.device import Runtime


def frozen(network: nn.Module, runtime: Runtime) -> nn.Module:
    """`network` on the runtime's device, in eval mode and without gradients. It is changed in place.

    Its large weights are kept in the runtime's precision, or autocast would cast them again at each step; in fp32
    on a CPU, which is bound by multiplications, its widest convolutions get along with fewer.
    """
    if runtime.device.type == "cpu" and runtime.precision == "fp32":
        winograd.replace(network)
    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.to(runtime.dtype)
    return runtime.place(network.eval().requires_grad_(False))
