"""Checkpoints as other code writes them: the network answers as it did where it was saved."""

import argparse
import datetime
import os
import pathlib
import pickle
import re
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from refusals import STAGES, refused
from utils.data.geometry import GeometryFlags
from utils.nets import checkpoints, models, weights
from utils.nets.teacher import _load_weights, load_teacher
from utils.run.errors import UserError


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    return models.build("conv3", 3, 16, "cifar").eval()


def answers(model, size=16):
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def load(path, content, arch="conv3", size=16, stem=None):
    torch.save(content, path)
    return load_teacher(arch, str(path), GeometryFlags(input_size=size, stem=stem))


BESIDE = {
    "settings": argparse.Namespace(model="conv3", lr=0.1, data=pathlib.Path("/data"), when=datetime.date(2020, 1, 2)),
    "numbers": {"best": np.float64(91.2), "hit": np.bool_(True), "last": np.int64(3), "name": np.str_("a")},
    "arrays": [np.arange(6.0).reshape(2, 3), np.array(["a", "b"]), np.array([None, {}], dtype=object)],
    "others": [
        defaultdict(list, a=[1]),
        SimpleNamespace(a=1),
        datetime.datetime(2020, 1, 2),
        {1, 2},
        torch.__version__,
    ],
    "random": np.random.RandomState(0).get_state(),
}


@pytest.mark.parametrize("modern", [True, False])
def test_harmless_types_beside_the_weights(tmp_path, conv, modern):
    torch.save({"model": conv.state_dict(), **BESIDE}, tmp_path / "t.pth", _use_new_zipfile_serialization=modern)
    teacher = load_teacher("conv3", str(tmp_path / "t.pth"), GeometryFlags(input_size=16))
    assert torch.equal(answers(teacher.network), answers(conv))


@pytest.mark.parametrize(
    "name, base",
    [
        ("easydict.EasyDict", dict),
        ("yacs.config.CfgNode", dict),
        ("lightning.fabric.utilities.data.AttributeDict", dict),
        ("omegaconf.dictconfig.DictConfig", object),
        ("omegaconf.nodes.AnyNode", object),
    ],
)
def test_settings_of_other_libraries_need_no_such_library(tmp_path, conv, monkeypatch, name, base):
    module, _, own = name.rpartition(".")
    kind = type(own, (base,), {"__module__": module})
    value = kind()
    value.content = 3
    if base is dict:
        value["lr"] = 0.1
    with monkeypatch.context() as patch:
        parents = module.split(".")
        for length in range(1, len(parents) + 1):
            patch.setitem(sys.modules, ".".join(parents[:length]), SimpleNamespace(__path__=[]))
        setattr(sys.modules[module], own, kind)
        torch.save({"state_dict": conv.state_dict(), "hyper_parameters": value}, tmp_path / "t.pth")
    teacher = load_teacher("conv3", str(tmp_path / "t.pth"), GeometryFlags(input_size=16))
    assert torch.equal(answers(teacher.network), answers(conv))


def test_the_reference_script_of_torchvision(tmp_path, conv):
    optimizer = torch.optim.SGD(conv.parameters(), 0.1, momentum=0.9)
    answers_before = answers(conv)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer)
    main = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, main], [2])
    average = torch.optim.swa_utils.AveragedModel(conv)
    content = {"model": conv.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "scaler": {}}
    content |= {"model_ema": average.state_dict(), "args": argparse.Namespace(model="resnet18", device="cuda")}
    content["lr_scheduler"] = {k: v for k, v in schedule.state_dict().items() if k != "_schedulers"}
    assert torch.equal(answers(load(tmp_path / "t.pth", content).network), answers_before)


def test_numpys_numbers_are_facts(tmp_path, conv):
    content = {"model": conv.state_dict(), "top1": np.float32(61.25), "input_size": np.int64(16)}
    content |= {"mean": np.array([0.5, 0.25, 0.125]), "std": torch.tensor([0.5, 0.25, 0.125]), "classes": 3}
    for order in "<", ">":
        content["num_classes"] = np.array(3, dtype=f"{order}i4")[()]
        content["mean"] = np.asfortranarray(np.array([0.5, 0.25, 0.125], dtype=f"{order}f8"))
        teacher = load(tmp_path / "t.pth", content)
        assert teacher.top1 == 61.25
        geometry = teacher.geometry
        assert (geometry.mean, geometry.std, geometry.num_classes) == ((0.5, 0.25, 0.125),) * 2 + (3,)


def test_the_names_that_torchvisions_folder_gives(tmp_path, conv):
    content = {"state_dict": conv.state_dict(), "class_to_idx": {"a": 2, "b": 0, "c": 1}, "input_size": (3, 16, 16)}
    geometry = load(tmp_path / "t.pth", content).geometry
    assert geometry.classes == ("b", "c", "a") and geometry.input_size == 16


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(os.mkdir,), (eval,), (pickle.loads,), (np.load,)])
def test_no_code_is_run_wherever_it_stands(tmp_path, conv, call):
    target = tmp_path / "ran"
    evil = Evil(*call, f"__import__('os').mkdir({str(target)!r})" if call[0] is eval else str(target))
    for content in ({"args": argparse.Namespace(a=evil)}, {"top1": evil}, {"x": np.array([evil], dtype=object)}):
        torch.save({"model": conv.state_dict(), **content}, tmp_path / "t.pth")
        with pytest.raises(UserError, match="objects"):
            checkpoints.read(tmp_path / "t.pth")
        assert not target.exists()


def test_a_network_saved_whole_is_refused_by_its_name(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "t.pth")
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear.*state_dict"):
        checkpoints.read(tmp_path / "t.pth")


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3, 3)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"net": w, "acc": 91.2, "epoch": 3},
        lambda w: {"model_state_dict": w, "optimizer_state_dict": OPTIMIZER, "loss": torch.tensor(0.5)},
        lambda w: {"ema": w, "optimizer": OPTIMIZER},
        lambda w: {"anything": w, "metrics": {"acc": torch.tensor(0.5)}, "rng": {"cpu": torch.get_rng_state()}},
        lambda w: {"checkpoint": {"student": w}, "epoch": 3},
        lambda w: {"model": {"state_dict": w}},
        lambda w: {"model": w, "ema": {name: tensor + 1 for name, tensor in w.items()}},
        lambda w: {"net": {name: tensor + 1 for name, tensor in w.items()}, "state_dict": w},
    ],
)
def test_weights_under_any_key(tmp_path, conv, wrap):
    teacher = load(tmp_path / "t.pth", wrap(conv.state_dict()))
    assert torch.equal(answers(teacher.network), answers(conv))


def test_of_several_networks_none_is_guessed(tmp_path, conv):
    with pytest.raises(UserError, match="generator, teacher"):
        load(tmp_path / "t.pth", {"teacher": conv.state_dict(), "generator": conv.state_dict()})


@pytest.mark.parametrize(
    "prefix",
    ["model.", "backbone.", "module.model.", "_orig_mod.module.", "net.encoder.", "a.b.c.", "model._orig_mod."],
)
def test_what_all_names_begin_with(tmp_path, conv, prefix):
    content = {"state_dict": {prefix + name: tensor for name, tensor in conv.state_dict().items()}}
    assert torch.equal(answers(load(tmp_path / "t.pth", content).network), answers(conv))


def test_wrappers_in_the_middle_of_names(tmp_path, conv):
    """Parts of a network can be wrapped alone: DataParallel around the features, torch.compile around a layer."""
    names = {name: re.sub(r"^layers\.", "layers.module._orig_mod.", name) for name in conv.state_dict()}
    content = {names[name]: tensor for name, tensor in conv.state_dict().items()}
    assert torch.equal(answers(load(tmp_path / "t.pth", content).network), answers(conv))


def test_counters_and_extra_state(tmp_path, conv):
    content = torch.optim.swa_utils.AveragedModel(conv).state_dict()
    assert "n_averaged" in content
    content |= {"module.total_ops": torch.zeros(1), "module.layers.conv.0.total_params": torch.zeros(1)}
    content |= {"module.layers._extra_state": None}
    assert torch.equal(answers(load(tmp_path / "t.pth", content).network), answers(conv))


KNOWN = [name for name in torchvision.models.list_models(module=torchvision.models) if "regnet" not in name]


@pytest.mark.parametrize("arch", [*KNOWN, "regnet_x_400mf", "regnet_y_400mf"])
def test_every_network_as_torchvision_writes_it(arch):
    """Its names stay as they are, its weights are taken and its classes are counted. Larger RegNets take long."""
    with torch.device("cpu" if "regnet" in arch else "meta"):
        options = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(arch, num_classes=3, **options)
    own = network.state_dict()
    short = weights.clean("t.pth", {f"module.{name}": tensor for name, tensor in own.items()})
    found = weights.matched(short, own)
    assert list(found) == list(own) and all(found[name] is own[name] for name in own)
    _load_weights(network, found, "t.pth: does not fit")
    assert models.read_num_classes(arch, short) == 3


@pytest.mark.parametrize("bare", [True, False])
def test_a_network_that_asks_for_metadata(tmp_path, bare):
    """torchvision's MNASNet asks for its version; in a file of squeeze, and in one with a wrapper's names."""
    torch.manual_seed(0)
    network = models.build("mnasnet0_5", 3, 32, "cifar").eval()
    checkpoints.save(tmp_path / "t.pth", network, arch="mnasnet0_5", input_size=32, num_classes=3, stem="cifar")
    if bare:
        torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "t.pth")
    found = load_teacher("mnasnet0_5", str(tmp_path / "t.pth"), GeometryFlags(input_size=32, stem="cifar"))
    assert torch.equal(answers(found.network, 32), answers(network, 32))


def test_the_older_names_of_densenet(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.densenet121(num_classes=3).eval()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in model.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    teacher = load(tmp_path / "t.pth", old, "densenet121", 64, "imagenet")
    assert torch.equal(answers(teacher.network, 64), answers(model, 64))


def test_the_older_names_of_vit(tmp_path):
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48, num_classes=3)
    nn.init.normal_(model.heads.head.weight)
    new = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    old = {re.sub(r"mlp\.[03]\.", lambda match: new[match[0]], name): t for name, t in model.state_dict().items()}
    other = torchvision.models.VisionTransformer(32, 16, 2, 2, 24, 48, num_classes=3)
    other.load_state_dict(old)  # as torchvision itself takes them
    found = weights.matched(weights.clean("t.pth", old), model.state_dict())
    assert list(found) == list(model.state_dict()) != list(old)
    model.load_state_dict(found)
    assert torch.equal(answers(model, 32), answers(other, 32))


@pytest.mark.slow
@pytest.mark.parametrize("arch, size", [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_heads_are_left_out(tmp_path, arch, size):
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, num_classes=3, aux_logits=True, init_weights=False).eval()
    assert any("aux" in name.lower() for name in model.state_dict())
    for prefix in "", "module.":
        content = {prefix + name: tensor for name, tensor in model.state_dict().items()}
        teacher = load(tmp_path / "t.pth", content, arch, size, "imagenet")
        assert torch.equal(answers(teacher.network, size), answers(model, size))


@pytest.mark.parametrize("arch, size", [("squeezenet1_1", 32), ("timm/dla46_c", 32)])
def test_bare_weights_of_a_network_whose_head_is_a_convolution(tmp_path, arch, size):
    torch.manual_seed(0)
    network = models.build(arch, 5, size, "imagenet").eval()
    found = load(tmp_path / "t.pth", network.state_dict(), arch, size, "imagenet")
    assert found.geometry.num_classes == 5 and torch.equal(answers(found.network, size), answers(network, size))


def test_weights_that_do_not_tell_their_classes_do_so_in_a_dict_with_their_number(tmp_path, conv):
    """Weights without a head say nothing; the advice is what works for a network that has one under another name."""
    content = {name: tensor for name, tensor in conv.state_dict().items() if "classifier" not in name}
    with pytest.raises(
        UserError, match=r"t.pth: the number of classes .* conv3, save {'model': ..., 'num_classes': N}"
    ):
        load(tmp_path / "t.pth", content)
    with pytest.raises(UserError, match="lacks classifier.bias"):
        load(tmp_path / "t.pth", {"model": content, "num_classes": 3})


class Cifar(nn.Module):
    """A residual network with the names of the field's CIFAR code (pytorch-cifar)."""

    class Block(nn.Module):
        def __init__(self, before, after, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)
            self.shortcut = nn.Sequential()
            if stride != 1 or before != after:
                skip = nn.Conv2d(before, after, 1, stride, bias=False)
                self.shortcut = nn.Sequential(skip, nn.BatchNorm2d(after))

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + self.shortcut(x)).relu()

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        before = 64
        for number, width in enumerate((64, 128, 256, 512), start=1):
            blocks = [self.Block(before, width, 1 + (number > 1)), self.Block(width, width, 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            before = width
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(nn.functional.avg_pool2d(x, 4).flatten(1))


def test_the_names_of_the_fields_cifar_code(tmp_path):
    torch.manual_seed(0)
    model = Cifar(3).eval()
    content = {"net": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, "acc": 95.1}
    teacher = load(tmp_path / "t.pth", content, "resnet18", 32)
    assert teacher.geometry.stem == "cifar"
    torch.testing.assert_close(answers(teacher.network, 32), answers(model, 32))


def test_an_architecture_that_goes_by_another_name(tmp_path, conv):
    teacher = load(tmp_path / "t.pth", {"model": conv.state_dict(), "arch": "ConvNet"})
    assert teacher.arch == "conv3" and torch.equal(answers(teacher.network), answers(conv))
    assert sum("ConvNet" in line and "conv3" in line for line in teacher.assumed) == 1
    with pytest.raises(UserError, match="'ConvNet'.*--teacher-arch"):
        load_teacher(None, str(tmp_path / "t.pth"), GeometryFlags(input_size=16))
    with pytest.raises(UserError, match="arch is conv3, not conv4"):
        load(tmp_path / "t.pth", {"model": conv.state_dict(), "arch": "conv3"}, "conv4")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("entry", ["layers.norm.1.running_var", "classifier.bias", "layers.conv.2.weight"])
def test_weights_that_are_no_numbers_are_named(tmp_path, conv, value, entry):
    content = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    content[entry].view(-1)[1] = value
    with pytest.raises(UserError, match=f"t.pth: {re.escape(entry)} holds NaN or infinity in 1 of"):
        load(tmp_path / "t.pth", content)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "squeeze"])
def test_every_stage_refuses_weights_that_are_no_numbers(place, stage):
    content = torch.load(place.teacher)
    content["model"]["layers.norm.0.running_var"][0] = float("nan")
    torch.save(content, place.teacher)
    refused(place, stage, place.teacher, "layers.norm.0.running_var", "NaN")


def test_a_teacher_whose_outputs_are_no_numbers_scores_nothing(place):
    """Weights can be numbers and their sums none: these overflow."""
    content = torch.load(place.teacher)
    for name, tensor in content["model"].items():
        if name.startswith("layers.conv"):
            tensor.mul_(1e30)
    torch.save(content, place.teacher)
    refused(place, "ranking", "conv3", "NaN or infinity")
    assert not (place / "ranking.csv").exists()
