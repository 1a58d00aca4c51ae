"""The objective of WMDD: value and gradient against plain float64 autograd, for one teacher and several."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from conftest import ROOT
from helpers import scrambled, small_net
from recover.objectives.base import Batch, combined
from recover.objectives.classwise import ClassMatchedBatchNorm
from recover.objectives.wasserstein import WassersteinMatching, positions
from utils.data.geometry import Geometry
from utils.nets.statistics import Statistics
from utils.nets.teacher import Teacher
from utils.run.errors import UserError

R_BN, CLASSES, IPC = 0.05, 4, 3
GEOMETRY = Geometry(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), num_classes=CLASSES, classes=None, stem="cifar")
LABELS = torch.tensor([2, 2, 2, 0, 0, 0])  # two whole classes


def mixed_net(classes=CLASSES, seed=0):
    """A plain BatchNorm behind one that carries an activation."""
    torch.manual_seed(seed)
    return scrambled(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            BatchNormAct2d(5, act_layer=nn.SiLU),
            nn.Conv2d(5, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        )
    )


NETS = {"plain": small_net, "mixed": mixed_net}


def images(count=len(LABELS), seed=7):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def file(tensors, **settings):
    return Statistics("file.safetensors", "f" * 64, {"teacher": "0" * 64, **settings}, (), tensors)


def points(seed=0, features=6, learn_weights=False):
    generator = torch.Generator().manual_seed(seed)
    found = {
        "points": torch.randn(CLASSES, IPC, features, generator=generator),
        "weights": torch.rand(CLASSES, IPC, generator=generator) + 0.1,
    }
    return file(found, learn_weights=learn_weights)


def class_targets(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            found[f"{name}.class_mean"] = torch.randn(CLASSES, module.num_features, generator=generator)
            found[f"{name}.class_total_var"] = torch.rand(CLASSES, module.num_features, generator=generator) + 0.5
    return file(found, per_class=True)


def matching(model, file_of_points=None, per_class=None, first=1.0, r_bn=R_BN):
    return WassersteinMatching(
        Teacher(model, "net", GEOMETRY, "0" * 64), r_bn, first, file_of_points or points(), per_class
    )


def reference(model, images, labels, targets, per_class=None, first=1.0):
    """(loss, gradient), in float64 by loops over classes, images and layers; `targets` is each image's point."""
    model, images = copy.deepcopy(model).double().eval(), images.clone().requires_grad_()
    seen, features = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0]}))
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    logits = model(images)
    loss = -logits.log_softmax(1)[range(len(labels)), labels].mean()
    loss = loss + sum((features[0][i] - targets[i].double()).pow(2).sum() for i in range(len(labels))).sqrt()
    for index, (name, x) in enumerate(seen.items()):
        norm = model.get_submodule(name)
        if per_class is None:
            groups = [(x, norm.running_mean, norm.running_var)]
        else:
            groups = [
                (
                    x[labels == label],
                    per_class.tensors[f"{name}.class_mean"][label].double(),
                    per_class.tensors[f"{name}.class_total_var"][label].double(),
                )
                for label in labels.unique()
            ]
        distances = []
        for part, mean, var in groups:
            rows = part.transpose(0, 1).flatten(1)
            found = rows.mean(1)
            spread = (rows - found[:, None]).pow(2).mean(1)
            distances.append((found - mean).pow(2).sum().sqrt() + (spread - var).pow(2).sum().sqrt())
        loss = loss + R_BN * (first if index == 0 else 1.0) * sum(distances) / len(distances)
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def batch_of(images, labels):
    return Batch(images, GEOMETRY, labels, torch.arange(len(labels)), torch.tensor(0))


def measured(objective, images, labels):
    images = images.clone().requires_grad_()
    loss = objective(batch_of(images, labels))
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("classwise", [False, True], ids=["all", "per-class"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 5e-5)])
def test_value_and_gradient(name, classwise, dtype, tolerance):
    model = NETS[name]()
    targets = points().tensors["points"][LABELS, torch.tensor([0, 1, 2, 0, 1, 2])]
    per_class = class_targets(model) if classwise else None
    loss, gradient = reference(model, images(), LABELS, targets, per_class)
    objective = matching(model.to(dtype), per_class=per_class)
    found, found_gradient = measured(objective, images().to(dtype), LABELS)
    assert found.shape == () and found.item() == pytest.approx(loss.item(), rel=tolerance)
    assert relative(found_gradient, gradient) < tolerance


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_a_norm_of_classes_keeps_the_layout(layout, dtype, tolerance):
    """Convolutions around it would have to change it back. Means are several deviations from zero."""
    source = torch.Generator().manual_seed(0)
    exact, weights = (torch.randn(6, 5, 4, 7, generator=source, dtype=torch.float64) for _ in range(2))
    exact = (exact + torch.arange(5.0).view(5, 1, 1)).requires_grad_()
    goals = [torch.randn(CLASSES, 5, generator=source, dtype=torch.float64) for _ in range(2)]
    norm = scrambled(nn.BatchNorm2d(5)).double().eval().requires_grad_(False)
    expected = norm(exact)
    distances = []
    for label in (0, 2):
        rows = exact[LABELS == label].transpose(0, 1).flatten(1)
        moments = rows.mean(1), rows.var(1, correction=0)
        distances.append(sum((own - goal[label]).pow(2).sum().sqrt() for own, goal in zip(moments, goals)))
    distance = sum(distances) / 2
    gradient = torch.autograd.grad((expected * weights).sum() + 20 * distance, exact)[0]

    x = exact.detach().to(dtype).contiguous(memory_format=layout).requires_grad_()
    matched = ClassMatchedBatchNorm(norm, *goals).to(dtype)
    matched.labels = LABELS
    y = matched(x)
    found = torch.autograd.grad((y * weights.to(dtype)).sum() + 20 * matched.distance, x)[0]
    assert y.is_contiguous(memory_format=layout) and found.is_contiguous(memory_format=layout)
    assert relative(y, expected) < tolerance and relative(found, gradient) < tolerance
    assert matched.distance.item() == pytest.approx(distance.item(), rel=tolerance)


def test_the_terms_differ_from_one_another():
    """So that none of the comparisons above could pass by leaving one out."""
    model, targets = small_net(), points().tensors["points"][LABELS, positions(LABELS)]
    plain = reference(model, images(), LABELS, targets)[0]
    others = [
        reference(model, images(), LABELS, targets, class_targets(model))[0],
        reference(model, images(), LABELS, targets.flip(0))[0],
        reference(model, images(), LABELS, targets, first=10.0)[0],
    ]
    assert all(abs(other - plain) > 1e-2 for other in others)


def test_classes_of_different_size_count_alike():
    """As where some images of a class have not joined yet."""
    labels = torch.tensor([1, 1, 1, 3])
    model = small_net()
    targets = points().tensors["points"][labels, torch.tensor([0, 1, 2, 0])]
    loss, gradient = reference(model, images(4), labels, targets, class_targets(model))
    found, found_gradient = measured(matching(model.double(), per_class=class_targets(model)), images(4), labels)
    assert found.item() == pytest.approx(loss.item(), rel=1e-7) and relative(found_gradient, gradient) < 1e-7


def test_positions_are_the_places_in_the_class():
    assert positions(torch.tensor([5, 5, 2, 5, 2, 7])).tolist() == [0, 1, 0, 2, 1, 0]


def test_several_teachers_have_points_of_their_own():
    targets = [points(seed).tensors["points"][LABELS, positions(LABELS)] for seed in (0, 5)]
    both = [reference(small_net(seed=seed), images(), LABELS, goal) for seed, goal in zip((0, 1), targets)]
    terms = [matching(small_net(seed=seed).double(), points(own)) for seed, own in ((0, 0), (1, 5))]
    found, gradient = measured(combined(terms, "mean"), images(), LABELS)
    assert found.item() == pytest.approx((both[0][0] + both[1][0]).item() / 2, rel=1e-7)
    assert relative(gradient, (both[0][1] + both[1][1]) / 2) < 1e-7


def test_the_network_still_gives_the_teachers_logits():
    model = small_net()
    expected = copy.deepcopy(model)(images().float())
    torch.testing.assert_close(matching(model).networks()[0](images().float()), expected)


def test_bf16_keeps_the_norms_in_fp32():
    model = small_net()
    targets = points().tensors["points"][LABELS, positions(LABELS)]
    for per_class in (None, class_targets(model)):
        loss, _ = reference(model, images(), LABELS, targets, per_class)
        objective = matching(copy.deepcopy(model), per_class=per_class)
        with torch.autocast("cpu", torch.bfloat16):
            found = objective(batch_of(images().float(), LABELS))
        assert found.dtype == torch.float32 and found.item() == pytest.approx(loss.item(), rel=1e-2)


COMPILE = """
import torch
from test_wasserstein import LABELS, batch_of, class_targets, images, matching, points, positions, reference, small_net
model = small_net()
for per_class in (None, class_targets(model)):
    targets = points().tensors["points"][LABELS, positions(LABELS)]
    loss, gradient = reference(model, images(), LABELS, targets, per_class)
    objective = matching(small_net(), per_class=per_class)
    x = images().float().requires_grad_()
    found = torch.compile(lambda x, labels: objective(batch_of(x, labels)), fullgraph=True)(x, LABELS)
    own = torch.autograd.grad(found, x)[0]
    assert abs(found.item() / loss.item() - 1) < 5e-5, (found, loss)
    assert (own - gradient).norm() < 1e-4 * gradient.norm()
"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_in_one_graph():
    """In a process of its own: one that has compiled is of no use to tests that fork."""
    paths = [str(path) for path in (ROOT, ROOT / "tests", Path(__file__).parent)]
    script = f"import sys; sys.path[:0] = {paths}\n{COMPILE}"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


# --- what fits, and what images are worth ---------------------------------------------------------------------------


def test_weights_are_facts_of_the_images_where_they_were_learnt():
    found = points(learn_weights=True)
    objective = matching(small_net(), found)
    assert objective.facts(2, 1) == {"weight": pytest.approx(found.tensors["weights"][2, 1].item())}
    assert matching(small_net()).facts(2, 1) == {}
    several = combined([objective, matching(small_net(seed=1))], "turn")
    assert several.facts(2, 1) == objective.facts(2, 1)


@pytest.mark.parametrize("ipc, batch_by, told", [(4, "class", "--ipc 3"), (IPC, "index", "--batch-by class")])
def test_sets_that_the_points_do_not_fit(ipc, batch_by, told):
    for objective in (matching(small_net()), combined([matching(small_net()), matching(small_net(seed=1))], "mean")):
        objective.check(IPC, "class")
        with pytest.raises(UserError, match=told):
            objective.check(ipc, batch_by)


def test_points_of_other_features():
    with pytest.raises(UserError, match="has 7 features a point, net has 6"):
        matching(small_net(), points(features=7))
