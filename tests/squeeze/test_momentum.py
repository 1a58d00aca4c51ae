"""The momentum of squeeze is the flag's at every step, whatever the learning rate does."""

from unittest import mock

import pytest
import torch


@pytest.mark.parametrize("lr_schedule", ["onecycle", "cosine"])
@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_momentum_is_the_flags_at_every_step(place, lr_schedule, momentum):
    seen, rates, step = [], set(), torch.optim.SGD.step

    def recording(optimizer, *args, **kwargs):
        seen.extend(group["momentum"] for group in optimizer.param_groups)
        rates.update(group["lr"] for group in optimizer.param_groups)
        return step(optimizer, *args, **kwargs)

    with mock.patch.object(torch.optim.SGD, "step", recording):
        place.works("squeeze", momentum=momentum, lr_schedule=lr_schedule)
    # 21 images in batches of 8 are 3 steps an epoch, of 4 epochs.
    assert seen == [momentum] * 12 and len(rates) > 6
