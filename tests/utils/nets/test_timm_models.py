"""Networks of timm."""

import pytest
import torch

from utils.nets import models
from utils.run.errors import UserError


@pytest.mark.parametrize("arch", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"])
def test_timm_networks_take_images_of_the_size(arch):
    model = models.build(arch, 3, 32, "cifar").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("stem", models.STEMS)
def test_a_network_without_convolutions_takes_small_images(stem):
    arch = "timm/naflexvit_base_patch16_siglip"
    with torch.device("meta"):  # its smallest is large
        model = models.build(arch, 3, 32, stem).eval()
        assert not any(isinstance(module, torch.nn.Conv2d) for module in model.modules())
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert models.read_stem(arch, model.state_dict()) is None and not models.hides_stem(arch)
    assert models.read_num_classes(arch, model.state_dict()) == 3


def test_a_network_that_says_nothing_about_why_it_takes_no_such_images(monkeypatch):
    """As timm's halonet26t, at sizes that its blocks do not divide."""

    def silent(*_, **__):
        raise AssertionError

    monkeypatch.setattr(models, "_make", silent)
    with pytest.raises(UserError, match=r"'timm/resnet18' .* 224 pixels \(AssertionError\); give another --input-size"):
        models.build("timm/resnet18", 3, 224, "imagenet")


def test_where_one_stem_alone_does_not_fit_the_other_is_named(monkeypatch):
    made = models._make

    def unfit(arch, num_classes, input_size, stem, weights):
        if stem == "cifar":
            raise RuntimeError("no")
        return made(arch, num_classes, input_size, stem, weights)

    monkeypatch.setattr(models, "_make", unfit)
    with pytest.raises(UserError, match=r"the cifar stem cannot .* give --stem imagenet, another --input-size or"):
        models.build("timm/resnet18", 3, 64, "cifar")


@pytest.mark.parametrize("stem, features", [("cifar", 8), ("imagenet", 2)])
def test_a_stem_of_two_branches_keeps_small_images_whole(stem, features):
    """FastViT's stem quarters an image, and its stages have an eighth of what the stem leaves."""
    model = models.build("timm/fastvit_t8", 3, 64, stem).eval()
    assert model.forward_features(torch.zeros(1, 3, 64, 64)).shape[2:] == (features, features)
