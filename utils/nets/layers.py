"""Which layers are torch's own: only of these is it known what they compute."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` computes what torch's `kind` of layer does, and nothing else.

    Not so for subclasses (timm's BatchNormAct2d has an activation, its StdConv2d standardises the weights), layers
    with parametrizations (which make a subclass too), with hooks (spectral_norm), or with a forward of their own.
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)
