"""Networks of timm."""

import pytest
import torch

from utils.nets import models


@pytest.mark.parametrize("arch", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"])
def test_timm_networks_take_images_of_the_size(arch):
    model = models.build(arch, 3, 32, "cifar").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
