"""BatchNorm over all ranks: what a network computes otherwise stays."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from helpers import scrambled
from utils.nets import models
from utils.run.distributed import synchronised
from utils.run.errors import UserError


@pytest.mark.parametrize("arch", ["resnet18", "timm/mobilenetv3_small_050", "timm/regnetx_002"])
def test_activations_stay(arch):
    torch.manual_seed(0)
    model = scrambled(models.build(arch, 3, 32, "cifar"))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
        found = synchronised(model)
        torch.testing.assert_close(found(x), expected, rtol=1e-5, atol=1e-6)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in found.modules()) == norms > 10
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())


def test_the_weights_keep_their_names():
    model = models.build("timm/mobilenetv3_small_050", 3, 32, "cifar")
    names = list(model.state_dict())
    assert list(synchronised(model).state_dict()) == names


def test_a_kind_that_has_no_synchronised_form_is_one_error():
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 2

    for kind in (Own, type("More", (BatchNormAct2d,), {"forward": Own.forward})):
        with pytest.raises(UserError, match=f"--sync-bn: {kind.__name__} has no synchronised form"):
            synchronised(nn.Sequential(nn.Conv2d(3, 4, 1), kind(4)))
