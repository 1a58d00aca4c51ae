"""Networks of timm."""

import pytest
import torch

from utils.nets import models
from utils.run.errors import UserError


@pytest.mark.parametrize("arch", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"])
def test_timm_networks_take_images_of_the_size(arch):
    model = models.build(arch, 3, 32, "cifar").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("arch, size", [("timm/halonet26t", 224), ("timm/botnet26t_256", 200)])
def test_a_network_that_says_nothing_about_why_it_takes_no_such_images(arch, size):
    with pytest.raises(UserError, match=rf"'{arch}' .* {size} pixels \(\w+\); give another --input-size"):
        models.build(arch, 3, size, "imagenet")
