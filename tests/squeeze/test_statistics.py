"""python -m squeeze.statistics against float64 sums of single images, and what it does with what is there already."""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from conftest import CLASSES, INPUT, MEAN, STD, snapshot
from helpers import noise
from squeeze.augment import augmentation
from squeeze.statistics import batch_keys
from utils.data.geometry import Geometry, plain
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches
from utils.nets import checkpoints, models
from utils.nets.teacher import load_teacher

IMAGES = 21  # 7 of each class: batches of 8, 8 and 5


@pytest.fixture
def line(place):
    """The command line of the stage, as words."""

    def words(**changes):
        given = dict(train_dir=place.train, teacher_path=place.teacher, output=place / "s.safetensors", batch_size=8)
        given |= dict(device="cpu", precision="fp32", compile="off", workers=0, **changes)
        pairs = [
            ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
            for name, value in given.items()
            if value is not None
        ]
        return [word for pair in pairs for word in pair]

    return words


def works(place, line, **changes):
    outcome = place.start("squeeze.statistics", *line(**changes))
    assert outcome.code == 0, outcome.err
    return outcome.out


def settings(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["statistics"])["settings"]


def views(place, batch_size=8):
    """The batches of the pass, float64 normalised with their labels. Every image is in one of them."""
    folder = ImageFolder(place.train, "--train-dir")
    batches = AugmentedBatches(folder, augmentation(INPUT, 4), 0)
    keys = list(batch_keys(len(folder), batch_size, (0, "statistics")))
    assert sorted(index for _, indices in keys for index in indices) == list(range(IMAGES))
    for images, labels in batches.batches(keys):
        pixels = images.numpy().astype(np.float64) / 255
        yield (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)), labels.numpy()


def inputs(network, images):
    """Name -> what each convolution and BatchNorm gets, by float64 NumPy arrays."""
    network, seen = copy.deepcopy(network).double(), {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(lambda m, x, name=name: seen.__setitem__(name, x[0].numpy().copy()))
    with torch.no_grad():
        network(torch.tensor(images))
    return seen


def weights(length, size):
    """The bilinear interpolation of a line by hand: pixel centres keep their places."""
    matrix = np.zeros((size, length))
    for k in range(size):
        at = min(max((k + 0.5) * length / size - 0.5, 0), length - 1)
        low = int(at)
        matrix[k, low] += 1 - (at - low)
        matrix[k, min(low + 1, length - 1)] += at - low
    return matrix


def patches(x, side):
    """x (N, C, H, W) -> (P, N, C, side, side), of the map resized to the multiple of `side` below or at it."""
    height, width = (max(length // side * side, side) for length in x.shape[2:])
    x = weights(x.shape[2], height) @ x @ weights(x.shape[3], width).T
    cut = [x[:, :, i : i + side, j : j + side] for i in range(0, height, side) for j in range(0, width, side)]
    return np.stack(cut)


def expected(place, side):
    """All that a file holds, summed image by image."""
    network = load_teacher(None, str(place.teacher)).network
    found, of_class = {}, {}
    for images, labels in views(place):
        for name, x in inputs(network, images).items():
            share = len(images) / IMAGES
            parts = {"mean": x.mean((0, 2, 3)), "var": x.var((0, 2, 3))}
            cut = patches(x, side)
            parts |= {"patch_mean": cut.mean((1, 2, 3, 4)), "patch_var": cut.var((1, 2, 3, 4))}
            for part, value in parts.items():
                found[f"{name}.{part}"] = found.get(f"{name}.{part}", 0) + share * value
            for n, label in enumerate(labels):
                own = {"mean": x[n].mean((1, 2)), "var": x[n].var((1, 2))}
                own |= {"patch_mean": cut[:, n].mean((1, 2, 3)), "patch_var": cut[:, n].var((1, 2, 3)), "all": x[n]}
                for part, value in own.items():
                    of_class.setdefault((name, part, int(label)), []).append(value)
    for name, part, label in of_class:
        values = np.stack(of_class[name, part, label])
        if part == "all":
            value, key = values.var((0, 2, 3)), f"{name}.class_total_var"
        else:
            value, key = values.mean(0), f"{name}.class_{part}"
        found.setdefault(key, np.zeros((3, len(value))))[label] = value
    return found


@pytest.mark.parametrize("side", [4, 5, 2, 16])
def test_every_number_against_sums_over_single_images(place, line, side):
    """Maps of 14, 7 and 3 pixels: cut after resizing to 12, 10, ...; smaller ones than a patch are enlarged."""
    works(place, line, per_class=True, patch=side)
    found, wanted = load_file(place / "s.safetensors"), expected(place, side)
    parts = {"class_mean", "class_var"}
    kinds = {"conv": parts | {"mean", "var", "patch_mean", "patch_var", "class_patch_mean", "class_patch_var"}}
    kinds["norm"] = parts | {"class_total_var"}
    names = {f"layers.{kind}.{k}.{part}" for kind in kinds for k in range(3) for part in kinds[kind]}
    assert set(found) == names
    for name, value in found.items():
        assert value.dtype == torch.float32
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(value.numpy(), wanted[name], rtol=2e-4, atol=2e-6 * scale, err_msg=name)


def test_without_classes_only_convolutions_are_measured(place, line):
    works(place, line)
    found, wanted = load_file(place / "s.safetensors"), expected(place, 4)
    parts = ("mean", "var", "patch_mean", "patch_var")
    assert set(found) == {f"layers.conv.{k}.{part}" for k in range(3) for part in parts}
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), wanted[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_the_file_says_whose_it_is(place, line):
    out = works(place, line, per_class=True)
    assert "21 images of 3 classes by conv3" in out and "3 convolutions and 3 BatchNorms" in out
    said, teacher = settings(place / "s.safetensors"), load_teacher(None, str(place.teacher))
    assert said["teacher"] == teacher.sha256 and said["arch"] == "conv3" and said["classes"] == list(CLASSES)
    assert said["images"] == ImageFolder(place.train, "--train-dir").fingerprint()
    assert said["per_class"] is True and said["norms"] is False and said["patch"] == 4 and said["batch_size"] == 8


def test_images_are_padded_as_the_teacher_was_trained(place, line):
    """Without padding, crops are the resized images themselves, and a flip moves no mean."""
    place.works("squeeze", output=place.teacher, crop_padding=0, overwrite=True)
    works(place, line)
    files = sorted(place.train.glob("*/*.png"))
    pixels = np.stack(
        [np.asarray(Image.open(file).resize((INPUT, INPUT), Image.Resampling.BILINEAR)) for file in files]
    )
    wanted = ((pixels / 255 - MEAN) / STD).mean((0, 1, 2))
    np.testing.assert_allclose(load_file(place / "s.safetensors")["layers.conv.0.mean"].numpy(), wanted, rtol=1e-4)
    assert settings(place / "s.safetensors")["crop_padding"] == 0


@pytest.mark.parametrize(
    "said", [None, {}, {"crop_padding": "x"}, {"crop_padding": -1}, {"crop_padding": True}], ids=repr
)
def test_a_teacher_that_does_not_say_its_padding_gets_squeezes(place, line, said):
    works(place, line, output=place / "four.safetensors")
    content = torch.load(place.teacher, weights_only=True)
    assert content["settings"]["crop_padding"] == 4
    torch.save({**content, "settings": said}, place.teacher)
    works(place, line)
    found, wanted = load_file(place / "s.safetensors"), load_file(place / "four.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert settings(place / "s.safetensors")["crop_padding"] == 4


def test_done_is_done_and_another_run_is_an_error(place, line):
    works(place, line)
    before = snapshot(place.root)
    assert "is complete" in works(place, line)
    outcome = place.start("squeeze.statistics", *line(seed=1))
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "seed: 0 -> 1" in outcome.err
    noise(place.train / "ant" / "ant0.png", 9, 16)
    outcome = place.start("squeeze.statistics", *line())
    assert outcome.code == 2 and "images: " in outcome.err and "--overwrite" in outcome.err
    after = snapshot(place.root)
    assert {k: v for k, v in after.items() if "ant0" not in k} == {k: v for k, v in before.items() if "ant0" not in k}
    works(place, line, overwrite=True)
    assert (place / "s.safetensors").read_bytes() != before["s.safetensors"][0]


@pytest.mark.parametrize("per_class", [None, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_pass_goes_on_to_the_same_bytes(place, line, monkeypatch, per_class, steps):
    works(place, line, per_class=per_class, output=place / "whole.safetensors")
    calls, add = [], __import__("squeeze.collect", fromlist=["Totals"]).Totals.add

    def counted(self, *values):
        add(self, *values)
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("squeeze.collect.Totals.add", counted)
    words = line(per_class=per_class)
    assert place.start("squeeze.statistics", *words).code == 128 + signal.SIGTERM
    assert not (place / "s.safetensors").exists() and (place / ".s.safetensors.state").exists()
    assert place.start("squeeze.statistics", *words).code == 0
    assert len(calls) == 3, "no batch was read twice"
    assert (place / "s.safetensors").read_bytes() == (place / "whole.safetensors").read_bytes()
    assert not list(place.root.glob(".s.safetensors*"))


class Grouped(nn.Module):
    """Without BatchNorm, with a shared map of one pixel, and a convolution that is never called."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.unused = nn.Conv2d(4, 4, 1)
        self.squeeze, self.fc = nn.Conv2d(4, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.squeeze(self.norm(self.stem(x)).relu().mean((2, 3), keepdim=True)).flatten(1))


class Windows(Grouped):
    """Whose last convolution gets the four quarters of each map as maps of their own."""

    def forward(self, x):
        quarters = [part for row in self.norm(self.stem(x)).relu().chunk(2, 2) for part in row.chunk(2, 3)]
        found = self.squeeze(torch.cat(quarters)).mean((2, 3)).unflatten(0, (4, -1))
        return self.fc(found.mean(0))


@pytest.mark.parametrize("name", CLASSES)
def test_rank_0_alone_decodes_every_image_before_the_pass(place, line, monkeypatch, name):
    monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", 0)
    damaged = place.train / name / f"{name}6.png"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    given = line(input_size=INPUT)
    outcome = place.start("squeeze.statistics", *given, env={"RANK": "0", "WORLD_SIZE": "3"})
    assert outcome.code == 2 and str(damaged) in outcome.err
    assert f"{IMAGES} images" not in outcome.out, "which is said when the pass begins"


def test_a_network_without_batchnorm(place, line, monkeypatch):
    torch.manual_seed(0)
    network = Grouped()
    geometry = Geometry(INPUT, MEAN, STD, 3, CLASSES, "cifar")
    monkeypatch.setattr(models, "build", lambda *_, **__: Grouped())
    checkpoints.save(place.teacher, network, arch="resnet18", **plain(geometry))
    works(place, line, per_class=True)
    found = load_file(place / "s.safetensors")
    assert {name.rsplit(".", 1)[0] for name in found} == {"stem", "squeeze"}
    # One patch of 4 x 4 pixels, all the same as the one pixel of the map.
    assert found["squeeze.patch_mean"].shape == (1,)
    torch.testing.assert_close(found["squeeze.patch_mean"][0], found["squeeze.mean"].mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["squeeze.class_var"], torch.zeros(3, 4), rtol=0, atol=1e-6)


def test_a_network_that_mixes_the_maps_of_images_has_no_statistics_of_classes(place, line, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(models, "build", lambda *_, **__: Windows())
    checkpoints.save(
        place.teacher, Windows(), arch="resnet18", **plain(Geometry(INPUT, MEAN, STD, 3, CLASSES, "cifar"))
    )
    before = snapshot(place.root)
    outcome = place.start("squeeze.statistics", *line(per_class=True))
    assert outcome.code == 2 and "--per-class: the network's layer squeeze gets 8 maps of 2 images" in outcome.err
    assert outcome.err.strip().count("\n") == 0 and snapshot(place.root) == before
    works(place, line)
    found = load_file(place / "s.safetensors")
    assert {name.rsplit(".", 1)[0] for name in found} == {"stem", "squeeze"}


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(output="s.npz"), "name a .safetensors file"),
        (dict(train_dir="nowhere"), "nowhere: no such folder"),
        (dict(patch=0), "'0' is not a whole number of 1 or more"),
    ],
)
def test_bad_arguments_are_one_line(place, line, changes, said):
    before = snapshot(place.root)
    outcome = place.start("squeeze.statistics", *line(**changes))
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err
    assert snapshot(place.root) == before


def test_a_file_of_another_kind_is_not_replaced(place, line):
    (place / "s.safetensors").write_bytes(b"mine")
    outcome = place.start("squeeze.statistics", *line())
    assert outcome.code == 2 and "is no file of statistics" in outcome.err
    assert (place / "s.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("stage", ["squeeze.statistics", "squeeze.barycenters"])
@pytest.mark.parametrize("content", ['{"seconds": 2, "lr": 1}', "[1]", "no JSON"])
def test_a_file_that_is_called_as_the_seconds_are_is_left_alone(place, line, stage, content):
    if stage == "squeeze.barycenters":
        pytest.importorskip("ot")
    (place / "s.json").write_text(content)
    before = snapshot(place.root)
    outcome = place.start(stage, *line(overwrite=True))
    assert outcome.code == 2 and f"{place / 's.json'} would get" in outcome.err and outcome.err.count("\n") == 1
    assert snapshot(place.root) == before
    (place / "s.json").write_text('{"seconds": 2.0}')  # of an earlier run
    assert place.start(stage, *line(overwrite=True)).code == 0
