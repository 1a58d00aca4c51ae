"""What the tests of statistics matching share: networks, files of made-up targets, and the loss as a slow loop."""

import copy

import torch
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn

from helpers import scrambled, small_net
from recover.objectives.base import Batch
from recover.objectives.statistics import StatisticsMatching, Weights
from utils.data.geometry import Geometry
from utils.nets import statistics
from utils.nets.statistics import Layer, measurable
from utils.nets.teacher import Teacher

CLASSES = 4
PARTS = ("mean", "var", "patch_mean", "patch_var")
GEOMETRY = Geometry(8, (0.4, 0.45, 0.6), (0.2, 0.25, 0.3), num_classes=CLASSES, classes=None, stem="cifar")
OTHER = Geometry(8, (0.1, 0.9, 0.5), (0.6, 0.35, 1.0), num_classes=CLASSES, classes=None, stem="cifar")


def odd_layers():
    """Layers that are more than torch's own, one after the other with its own; maps of 8, 3 and 1 pixels."""
    torch.manual_seed(5)
    return scrambled(
        nn.Sequential(
            StdConv2d(3, 6, 3, padding=1),
            BatchNormAct2d(6, act_layer=nn.SiLU, inplace=True),
            nn.Conv2d(6, 6, 3, stride=2, groups=3),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(6, 5, 1),
            nn.Flatten(),
            nn.Linear(5, CLASSES),
        )
    )


def grouped():
    """A network without BatchNorm."""
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, CLASSES),
    ).eval()


NETS = {"small": small_net, "odd": odd_layers, "grouped": grouped}


def inputs(model, images):
    """Name -> input of each convolution and BatchNorm, in the order of the modules; and the logits."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            seen[name] = None
            keep = lambda m, x, name=name: seen.__setitem__(name, x[0].clone())  # noqa: E731  before it acts in place
            hooks.append(module.register_forward_pre_hook(keep))
    logits = model(images)
    for hook in hooks:
        hook.remove()
    return seen, logits


def patches(x, side):
    """(N, C, H, W) -> (P, N, C, side, side) of the map, resized to the multiple of `side` below or at it."""
    size = [max(length // side * side, side) for length in x.shape[2:]]
    x = nn.functional.interpolate(x, size=size, mode="bilinear")
    return torch.stack(
        [x[:, :, i : i + side, j : j + side] for i in range(0, size[0], side) for j in range(0, size[1], side)]
    )


def measured(x, side, convolution):
    """The statistics of one layer's input."""
    found = {"mean": x.mean((0, 2, 3)), "var": x.transpose(0, 1).flatten(1).var(1, correction=0)}
    if convolution:
        cut = patches(x, side).flatten(1)
        found |= {"patch_mean": cut.mean(1), "patch_var": cut.var(1, correction=0)}
    return found


def write_targets(path, model, side, sha256="0" * 64, seed=0, per_class=True):
    """A file of random targets for the layers of `model`."""
    generator = torch.Generator().manual_seed(seed)
    seen, _ = inputs(copy.deepcopy(model), torch.zeros(2, 3, 8, 8))
    layers, tensors = [], {}
    for name, kind in measurable(model).items():
        convolution = kind == statistics.CONVOLUTION
        sizes = {part: len(value) for part, value in measured(seen[name], side, convolution).items()}
        layers.append(Layer(name, kind, sizes["mean"], sizes.get("patch_mean", 0)))
        for part, size in sizes.items():
            if convolution:
                tensors[f"{name}.{part}"] = torch.rand(size, generator=generator)
            if per_class:
                tensors[f"{name}.class_{part}"] = torch.rand(CLASSES, size, generator=generator)
    settings = dict(teacher=sha256, arch="net", classes=list("abcd"), patch=side, per_class=per_class)
    settings["format"] = statistics.FORMAT
    return lambda geometry: _written(path, tensors, settings, geometry, layers)


def _written(path, tensors, settings, geometry, layers):
    facts = dict(input_size=geometry.input_size, mean=list(geometry.mean), std=list(geometry.std))
    statistics.write(path, tensors, {**settings, **facts}, layers, 0)
    return statistics.read(path)


def weights(**changed):
    """The settings of the terms, none of them off or 1."""
    values = dict(
        iterations=12, statistics=0.05, first=10.0, momentum=0.8, drop=0.0, class_share=0.0, densification=0.0
    )
    return Weights(**{**values, **changed})


def matching(model, found, geometry=GEOMETRY, dtype=torch.float64, **changed):
    model = copy.deepcopy(model).to(dtype)
    return StatisticsMatching(Teacher(model, "net", geometry, "0" * 64), found, weights(**changed))


def batch_of(images, labels, iteration=0, geometry=GEOMETRY):
    return Batch(images, geometry, labels, torch.arange(len(labels)), torch.tensor(iteration))


def densified(images, labels):
    total = torch.zeros((), dtype=torch.float64)
    pooled = nn.functional.adaptive_avg_pool2d(images, (32, 32)).flatten(1)
    for label in labels.unique():
        own = pooled[labels == label]
        values = torch.linalg.eigvalsh(own @ own.T)
        target = (values / 4).softmax(0).detach()
        total = total + nn.functional.kl_div(values.log_softmax(0), target, reduction="sum")
    return total


class Slow:
    """The loss of one teacher in float64, with its running averages as plain tensors, from the facts alone."""

    def __init__(self, model, found, geometry=GEOMETRY, **changed):
        self.model, self.found, self.geometry = copy.deepcopy(model).double(), found, geometry
        self.weights, self.averages = weights(**changed), {}

    def __call__(self, images, labels, source=GEOMETRY, dropped=()):
        """(loss, gradient); the averages move. `dropped` names convolutions."""
        w, side = self.weights, self.found.settings["patch"]
        images = images.double().clone().requires_grad_()
        shift = [torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (source.std, source.mean)]
        own = [torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (self.geometry.mean, self.geometry.std)]
        shown = ((images * shift[0] + shift[1]) - own[0]) / own[1]
        seen, logits = inputs(self.model, shown)
        loss = -logits.log_softmax(1)[range(len(labels)), labels].mean()
        if w.densification:
            loss = loss + w.densification * densified(shown, labels)
        modules = dict(self.model.named_modules())
        for number, (name, x) in enumerate(seen.items()):
            if name in dropped:
                continue
            convolution = isinstance(modules[name], nn.Conv2d)
            for part, now in measured(x, side, convolution).items():
                average = w.momentum * self.averages.get((name, part), 0.0) + (1 - w.momentum) * now.detach()
                self.averages[name, part] = average
                value = average + now - now.detach()
                if convolution:
                    target = self.found.tensors[f"{name}.{part}"].double()
                else:
                    target = getattr(modules[name], f"running_{part}")
                distance = (1 - w.class_share) * (value - target).pow(2).sum().sqrt()
                if w.class_share:
                    mine = self.found.tensors[f"{name}.class_{part}"].double()[labels].mean(0)
                    distance = distance + w.class_share * (value - mine).pow(2).sum().sqrt()
                loss = loss + w.statistics * (w.first if number == 0 else 1.0) * distance
        return loss.detach(), torch.autograd.grad(loss, images)[0]


def step(objective, images, labels, iteration=0, geometry=GEOMETRY):
    """(loss, gradient) of an objective."""
    images = images.clone().requires_grad_()
    loss = objective(batch_of(images, labels, iteration, geometry))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def example(count=5, seed=7):
    """Images (steps, N, 3, 8, 8) of a few steps, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, count, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (count,), generator=generator)
