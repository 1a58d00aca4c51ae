"""Networks: torchvision's and timm's by name, and the conv nets and wide residual networks of the field.

timm is imported where one of its own is asked for: that takes as long as most of a stage's other imports.

Run as a module, it ends with exit code 2 and one line if one of its arguments is no network's name.
"""

from __future__ import annotations

import copy
import functools
import re
import sys
from dataclasses import dataclass
from typing import Callable

import torch
import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from utils.data.datasets import SMALL_SIZE
from utils.nets.wide_resnet import WideResNet
from utils.run import entry
from utils.run.errors import UserError, first_line

STEMS = ("cifar", "imagenet")
CONV_WIDTH = 128
TIMM = "timm/"
UNFIT = (RuntimeError, AssertionError, ValueError, IndexError)  # what networks raise at sizes that are not theirs


class ConvNet(nn.Module):
    """convD and convD_wW: D blocks of 3x3 convolution, BatchNorm, ReLU and 2x2 average pooling, then a linear layer.

    W channels wide. The field's small network (Gidaris and Komodakis, 2018), with the parameter names of the published
    RDED checkpoints: layers.conv.D, layers.norm.D, classifier.
    """

    def __init__(self, depth: int, num_classes: int, input_size: int, width: int = CONV_WIDTH):
        super().__init__()
        side = input_size // 2**depth
        if side < 1:
            raise UserError(
                f"conv{depth} halves the image {depth} times: {input_size} pixels are too few; "
                f"use at most conv{input_size.bit_length() - 1}"
            )
        self.layers = nn.ModuleDict(
            {
                "conv": nn.ModuleList(nn.Conv2d(3 if d == 0 else width, width, 3, padding=1) for d in range(depth)),
                "norm": nn.ModuleList(nn.BatchNorm2d(width) for _ in range(depth)),
            }
        )
        self.classifier = nn.Linear(width * side * side, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.layers["conv"], self.layers["norm"]):
            x = nn.functional.avg_pool2d(norm(conv(x)).relu_(), 2)
        return self.classifier(x.flatten(1))


@dataclass(frozen=True)
class Network:
    """Networks of one kind, neither torchvision's nor timm's. They have one stem."""

    pattern: str  # of their names, whole
    make: Callable[[re.Match, int, int], nn.Module]  # (its match, num_classes, input_size) -> random weights


# By what messages call them.
NETWORKS: dict[str, Network] = {
    "conv1 to conv6 (conv3_w32: 32 channels wide)": Network(
        r"conv([1-6])(?:_w([1-9]\d{0,3}))?",
        lambda match, classes, size: ConvNet(int(match[1]), classes, size, int(match[2] or CONV_WIDTH)),
    ),
    "wrn_16_2": Network(
        r"wrn_(10|16|22|28|34|40)_([1-9]\d?)",
        lambda match, classes, size: WideResNet(int(match[1]), int(match[2]), classes),
    ),
}


def own() -> str:
    """What NETWORKS has, for messages."""
    return ", ".join(NETWORKS)


def _maker(arch: str) -> Callable[[int, int], nn.Module] | None:
    """(num_classes, input_size) -> the network of NETWORKS that has this name; None where none has."""
    for network in NETWORKS.values():
        if match := re.fullmatch(network.pattern, arch):
            return functools.partial(network.make, match)
    return None


def is_known(arch: str) -> bool:
    """Whether `build` has a network of that name."""
    if arch.startswith(TIMM):
        import timm

        return timm.is_model(arch.removeprefix(TIMM))
    return bool(_maker(arch)) or arch in torchvision.models.list_models(module=torchvision.models)


def require_known(arch: str) -> None:
    """Raises UserError where `build` has no network of that name."""
    if is_known(arch):
        return
    if not arch.startswith(TIMM):
        raise UserError(
            f"architecture '{arch}' is not known; use {own()}, a torchvision classification model such as resnet18, "
            "resnet50, mobilenet_v2, efficientnet_b0, vgg11, or timm/NAME"
        )
    import timm

    name = arch.removeprefix(TIMM)
    near = [found for found in timm.list_models(f"*{name[:5]}*") if name[:5]][:3]
    raise UserError(
        f"architecture 'timm/{name}' is not known to timm {timm.__version__}; "
        f"{f'near it: {chr(44).join(near)}' if near else 'timm.list_models() lists them'}"
    )


def default_stem(input_size: int) -> str:
    return "cifar" if input_size <= SMALL_SIZE else "imagenet"


def build(arch: str, num_classes: int, input_size: int, stem: str, weights: str | None = None) -> nn.Module:
    """A network with random weights (or torchvision's named `weights`) for (N, 3, input_size, input_size).

    `stem`: "imagenet" leaves torchvision's network as it is; "cifar" makes its first convolution 3x3 with
    stride 1 and drops the pool behind it. Those of NETWORKS and those that timm makes for one size, whose positions are
    the grid's behind the stem, have one stem. Raises UserError for an unknown `arch`, or one that cannot take images of
    this size.
    """
    if error := _misfit(arch, num_classes, input_size, stem):
        others = [other for other in STEMS if other != stem and not _misfit(arch, num_classes, input_size, other)]
        advice = "".join(f"--stem {other}, " for other in others)
        raise UserError(
            f"architecture '{arch}' with the {stem} stem cannot take images of {input_size} pixels "
            f"({first_line(error)}); give {advice}another --input-size or another architecture"
        )
    return _make(arch, num_classes, input_size, stem, weights)


def _misfit(arch: str, num_classes: int, input_size: int, stem: str) -> Exception | None:
    """What goes wrong where a network is shown an image of that size, which is tried without memory."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            _make(arch, num_classes, input_size, stem, None).eval()(torch.empty(1, 3, input_size, input_size))
    except NotImplementedError:
        pass  # a network that cannot be made without memory to try it: torchvision's RegNet
    except UNFIT as error:
        return error
    return None


def takes_size(network: nn.Module, size: int) -> bool:
    """Whether a network takes images (N, 3, size, size) too. It is tried without memory, on a copy."""
    try:
        with torch.random.fork_rng(devices=[]):
            copy.deepcopy(network).to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    except NotImplementedError:
        pass  # as in `build`
    except UNFIT:
        return False
    return True


def _make(arch: str, num_classes: int, input_size: int, stem: str, weights: str | None) -> nn.Module:
    if make := _maker(arch):
        return make(num_classes, input_size)
    require_known(arch)
    if arch.startswith(TIMM):
        model = _make_timm(arch.removeprefix(TIMM), num_classes, input_size)
    else:
        model = _make_torchvision(arch, num_classes, input_size, weights)
    if stem == "cifar" and not _has_one_stem(arch):
        _give_small_stem(model)
    return model


def _make_torchvision(arch: str, num_classes: int, input_size: int, weights: str | None) -> nn.Module:
    options = {"image_size": input_size} if arch.startswith("vit_") and weights is None else {}
    # These two bring auxiliary classifiers that nothing here uses.
    options |= (
        {"aux_logits": False, "init_weights": True} if arch in ("googlenet", "inception_v3") and weights is None else {}
    )
    return torchvision.models.get_model(arch, weights=weights, num_classes=num_classes, **options)


def _make_timm(name: str, num_classes: int, input_size: int) -> nn.Module:
    import timm

    options = {"img_size": input_size} if _has_one_size(TIMM + name) else {}  # the others know no such argument
    return timm.create_model(name, num_classes=num_classes, **options)


def _has_one_size(arch: str) -> bool:
    """Whether it is one of timm's that are made for one size, as those with position embeddings are."""
    if not arch.startswith(TIMM):
        return False
    import timm

    return getattr(timm.get_pretrained_cfg(arch.removeprefix(TIMM)), "fixed_input_size", False)


def _has_one_stem(arch: str) -> bool:
    return _maker(arch) is not None or _has_one_size(arch)


def _give_small_stem(model: nn.Module) -> None:
    convolutions = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    name, first = next(convolutions, (None, None))
    if first is None or first.kernel_size == first.stride:
        return  # a patch embedding (ViT, Swin), a convolution or not (NaFlexViT), is no stem to shrink
    stem = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=first.bias is not None)
    model.set_submodule(name, stem)
    for owner, attribute in _stem_pools(model):
        setattr(owner, attribute, nn.Identity())
    if type(model).__name__ in ("ByobNet", "NormFreeNet", "FastVit"):
        # These stems of timm's may halve the image a second time (resnet51q, nfnet), or in two branches (repvgg), or
        # both (fastvit).
        for module in model.stem.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)


def _stem_pools(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(owner, attribute) of what halves the image between the stem and the first stage, whatever it is made of."""
    places = (
        (model, "maxpool"),  # ResNet, ShuffleNet; timm's have blur, average pools or a convolution there
        (model, "pool0"),  # timm's SENet
        (getattr(model, "features", None), "pool0"),  # DenseNet
        (getattr(model, "features", None), "conv1_pool"),  # timm's DPN
        (getattr(model, "stem", None), "pool"),  # timm's ResNetV2, ByobNet, CspNet, NormFreeNet
    )
    return [(owner, name) for owner, name in places if _halves(getattr(owner, name, None))]


def _halves(module: nn.Module | None) -> bool:
    return module is not None and any(getattr(part, "stride", 1) in (2, (2, 2)) for part in module.modules())


def read_stem(arch: str, weights: dict[str, torch.Tensor]) -> str | None:
    """The stem that a state_dict was made with, or None where its shapes do not tell.

    First kernels of 3x3 have the same shape with both, as those of deep stems (resnet18d): only the stride differs.
    """
    large, small, _ = _stems(arch)
    found = _shapes(weights)
    differing = [name for name in {**large, **small} if large.get(name) != small.get(name)]
    for stem, shapes in (("imagenet", large), ("cifar", small)):
        if differing and all(found.get(name) == shapes.get(name) for name in differing):
            return stem
    return None


def hides_stem(arch: str) -> bool:
    """Whether the stem decides what a network computes, and not the shapes of its weights (MobileNet, resnet18d)."""
    large, small, alike = _stems(arch)
    return large == small and not alike


@functools.cache
def _stems(arch: str) -> tuple[dict, dict, bool]:
    """The shapes of all weights with the imagenet and the cifar stem, and whether both are one and the same network.

    Without shapes, and not the same, where the network cannot be built on the meta device.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        try:
            network = _make(arch, 2, 224, "imagenet", None)
            large, described = _shapes(network.state_dict()), str(network)
            if not _has_one_stem(arch):
                _give_small_stem(network)
            return large, _shapes(network.state_dict()), str(network) == described
        except (UserError, *UNFIT):
            return {}, {}, False  # `build` says what is wrong


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def published(arch: str, sha256: str) -> WeightsEnum | None:
    """torchvision's own weights that a file of this digest is: its first digits are a part of the published name."""
    if arch not in torchvision.models.list_models(module=torchvision.models):
        return None
    ending = f"-{sha256[:8]}.pth"
    return next((entry for entry in torchvision.models.get_model_weights(arch) if entry.url.endswith(ending)), None)


def read_num_classes(arch: str, weights: dict[str, torch.Tensor]) -> int | None:
    """The number of outputs of a state_dict's head, else of its last linear layer; None where it has neither."""
    head = _head(arch)
    if head not in weights:
        # Names of other code are matched later (utils/nets/weights.py): they stand as the file has them.
        head = next((name for name in reversed(weights) if weights[name].ndim == 2), None)
    return weights[head].shape[0] if head and weights[head].ndim else None


@functools.cache
def _head(arch: str) -> str | None:
    """The entry that has a row for each class: a linear layer's weight, or a convolution's (SqueezeNet, DPN, DLA).

    By the order of the network's modules: a safetensors file has its tensors by name. None where the network cannot be
    built on the meta device.
    """
    two = _stems(arch)[0]
    linear = [name for name, shape in two.items() if len(shape) == 2]
    if not two or (linear and two[linear[-1]][0] == 2):
        return linear[-1] if linear else None
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        three = _shapes(_make(arch, 3, 224, "imagenet", None).state_dict())
    return next((name for name in two if two[name][:1] == (2,) and three[name][:1] == (3,)), None)


def main() -> None:
    with torch.device("meta"):
        for name in sys.argv[1:]:
            _make(name, 2, 224, "imagenet", None)


if __name__ == "__main__":
    entry.run(main)
