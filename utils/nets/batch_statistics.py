"""BatchNorm by the statistics of the batch at hand, as in training, in a network that stays as it is."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def with_batch_statistics(network: nn.Module) -> nn.Module:
    """A copy of `network`, in eval mode, whose BatchNorms normalise by each batch and have no running statistics.

    Dropout and stochastic depth stay off: what it says of a batch is always the same.
    """
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return network
