"""Stems, of deep ones too: seen in the weights or left open, never mistaken; small ones do not shrink the image."""

import pytest
import timm
import torch
import torchvision

from utils.data.geometry import GeometryFlags
from utils.nets import models
from utils.nets.teacher import load_teacher
from utils.run.errors import UserError

# The kind of a stem, by its families; the first stage; whether its shapes tell.
NETWORKS = {
    "timm/resnet18d": ("layer1", False),
    "timm/resnet10t": ("layer1", False),
    "timm/resnet26t": ("layer1", False),
    "timm/seresnext26d_32x4d": ("layer1", False),
    "timm/resnetaa34d": ("layer1", False),  # average pool
    "timm/resnetblur18": ("layer1", True),  # blurred max-pool
    "timm/resnetrs50": ("layer1", True),  # a convolution for a pool
    "timm/resnest14d": ("layer1", False),
    "timm/legacy_seresnet18": ("layer1", True),
    "timm/resnetv2_18": ("stages.0", True),
    "timm/resnetv2_18d": ("stages.0", False),
    "timm/resnext26ts": ("stages.0", False),
    "timm/resnet51q": ("stages.0", False),  # halves the image twice
    "timm/nf_resnet26": ("stages.0", True),
    "timm/densenetblur121d": ("features.denseblock1", False),
    "resnet18": ("layer1", True),
    "resnext50_32x4d": ("layer1", True),
    "densenet121": ("features.denseblock1", True),
}


def theirs(arch):
    """The network as its library makes it."""
    if arch.startswith("timm/"):
        return timm.create_model(arch.removeprefix("timm/"), num_classes=3)
    options = {"aux_logits": False, "init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, num_classes=3, **options)


@pytest.mark.parametrize("arch", NETWORKS)
def test_the_stem_is_seen_or_left_open(arch):
    _, tells = NETWORKS[arch]
    with torch.device("meta"):
        large, small = theirs(arch), models.build(arch, 3, 32, "cifar")
    assert models.read_stem(arch, large.state_dict()) == ("imagenet" if tells else None)
    assert models.read_stem(arch, small.state_dict()) == ("cifar" if tells else None)


SLOW = ("densenet", "timm/densenet", "timm/resnest", "timm/resnetrs")
SOME = [pytest.param(arch, marks=[pytest.mark.slow] * arch.startswith(SLOW)) for arch in NETWORKS]


@pytest.mark.parametrize("arch", SOME)
def test_a_small_stem_does_not_shrink_the_image(arch):
    stage, _ = NETWORKS[arch]
    for stem, side in (("cifar", 32), ("imagenet", 8)):
        with torch.device("meta"):
            network, seen = models.build(arch, 3, 32, stem).eval(), []
            network.get_submodule(stage).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
            network(torch.zeros(2, 3, 32, 32))
        assert seen == [side], stem


@pytest.mark.parametrize("arch", ["timm/resnet10t", "timm/resnet18d"])
def test_a_deep_stem_follows_the_flag_or_the_size(tmp_path, arch):
    torch.manual_seed(0)
    own = theirs(arch).eval()
    torch.save(own.state_dict(), tmp_path / "t.pth")
    x = torch.randn(2, 3, 96, 96)
    for given in (dict(input_size=96), dict(input_size=64, stem="imagenet")):
        teacher = load_teacher(arch, str(tmp_path / "t.pth"), GeometryFlags(**given))
        with torch.no_grad():
            assert teacher.geometry.stem == "imagenet" and torch.equal(teacher.network(x), own(x))
    teacher = load_teacher(arch, str(tmp_path / "t.pth"), GeometryFlags(input_size=64))
    assert teacher.geometry.stem == "cifar" and "stem cifar (for 64 pixels)" in teacher.assumed


def test_a_deep_stem_whose_pool_tells_refuses_the_other_flag(tmp_path):
    with torch.device("meta"):
        weights = {name: torch.zeros(tensor.shape) for name, tensor in theirs("timm/resnetrs50").state_dict().items()}
    torch.save(weights, tmp_path / "t.pth")
    with pytest.raises(UserError, match="--stem imagenet"):
        load_teacher("timm/resnetrs50", str(tmp_path / "t.pth"), GeometryFlags(input_size=64, stem="cifar"))


@pytest.mark.parametrize("arch", ["mobilenet_v2", "regnet_x_400mf", "timm/resnet10t"])
def test_a_stem_that_the_shapes_hide_decides_the_answers(arch):
    torch.manual_seed(0)
    large, small = (models.build(arch, 3, 32, stem).eval() for stem in ("imagenet", "cifar"))
    small.load_state_dict(large.state_dict())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(large(images), small(images), rtol=1e-3, atol=0)
    assert models.hides_stem(arch)


@pytest.mark.parametrize("arch", ["conv3", "wrn_10_1", "timm/vit_tiny_patch16_224", "timm/mixer_s32_224", "resnet18"])
def test_no_stem_is_hidden_where_there_is_one_or_the_shapes_tell(arch):
    assert not models.hides_stem(arch)


@pytest.mark.parametrize("arch", ["timm/levit_128s", "timm/mvitv2_tiny", "timm/pit_ti_224", "timm/visformer_tiny"])
def test_networks_that_are_made_for_one_size_take_small_images_by_the_stem_that_they_have(arch):
    """Their positions are the grid's behind it; the meta device does not see all of those that are out of it."""
    torch.manual_seed(0)
    large, small = (models.build(arch, 3, 64, stem).eval() for stem in ("imagenet", "cifar"))
    small.load_state_dict(large.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(large(images), small(images))
    assert not models.hides_stem(arch) and models.read_stem(arch, large.state_dict()) is None


def test_networks_that_the_meta_device_cannot_try_are_built():
    network = models.build("regnet_x_400mf", 3, 32, "cifar").eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def like_resnet(name):
    kinds = ("resnet", "resnext", "resnest", "res2ne", "senet", "densenet", "dpn", "cspres", "skres", "botnet", "nfnet")
    return any(kind in name for kind in kinds) and not name.startswith("vit_")


@pytest.mark.slow
def test_no_stem_is_mistaken():
    """Some of timm's networks that are like a ResNet, every kind of deep stem among them, and of torchvision's."""
    deep = ["resnet18d", "resnet26t", "resnet50d", "resnet50s", "seresnext26d_32x4d", "resnetrs50", "ecaresnet26t"]
    likes = [name for name in timm.list_models() if like_resnet(name)]
    names = [f"timm/{name}" for name in sorted({*likes[::8], *set(deep).intersection(likes)})]
    others = torchvision.models.list_models(module=torchvision.models)
    names += [name for name in others if not name.startswith("regnet_")][::3]  # RegNets are not made on the meta device
    assert len(names) > 40 and "timm/resnet26t" in names
    for name in names:
        with torch.device("meta"):
            found = models.read_stem(name, theirs(name).state_dict())
            assert found in ("imagenet", None), name
            try:
                small = models._make(name, 3, 224, "cifar", None)
            except (UserError, RuntimeError, AssertionError, ValueError):
                continue
            assert models.read_stem(name, small.state_dict()) in ("cifar", None), name
