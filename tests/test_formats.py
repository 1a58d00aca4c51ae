"""What passes between stages: checkpoints, images, results; and the files and random streams below them."""
import contextlib
import csv
import json
import os
import pickle
import random
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import gray, noise, tree
from utils import checkpoints, cli, models, runtime as machine
from utils.files import UserError, replacing
from utils.images import ImageFolder, read_rgb, save_image
from utils.runtime import Runtime, generator, seeded, stream_seed
from validate import results
from validate.protocols import PROTOCOLS, default_lr, resolve
from utils.training import evaluated_epochs
from validate.train import Result, learning_rate

# --- checkpoints ------------------------------------------------------------------------------------------------

FACTS = dict(arch="conv3", stem="cifar", num_classes=3, classes=["b", "a", "ü"], input_size=16,
             mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], top1=61.25, epochs=7)


@pytest.fixture(scope="module")
def conv():
    torch.manual_seed(0)
    return models.build("conv3", 3, 16, "cifar").eval()


@pytest.fixture(scope="module")
def resnets():
    torch.manual_seed(0)
    return {stem: models.build("resnet18", 3, 32, stem) for stem in models.STEMS}


def answers(model, size=16):
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def test_checkpoint_round_trip(tmp_path, conv):
    path = tmp_path / "teacher.pth"
    checkpoints.save(path, conv, **FACTS)
    assert tree(tmp_path) == ["teacher.pth"]
    teacher = checkpoints.load_teacher(None, str(path))
    for name, value in FACTS.items():
        if name != "epochs":
            found = getattr(teacher, name)
            assert (list(found) if isinstance(value, list) else found) == value, name
    assert checkpoints.read(path)["epochs"] == 7
    assert teacher.assumed == []
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())
    assert torch.equal(answers(teacher.model), answers(conv))
    stored = torch.load(path, weights_only=True)
    assert list(stored["model"]) == list(conv.state_dict()) and set(stored) == {"model", *FACTS}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_checkpoints_of_others(tmp_path, conv, prefix, key):
    weights = {prefix + name: tensor for name, tensor in conv.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "t.pth")
    teacher = checkpoints.load_teacher("conv3", str(tmp_path / "t.pth"), input_size=16)
    assert torch.equal(answers(teacher.model), answers(conv))
    assert teacher.num_classes == 3 and teacher.classes is None
    assert teacher.mean == (0.485, 0.456, 0.406) and teacher.std == (0.229, 0.224, 0.225)
    assumed = " ".join(teacher.assumed)
    assert all(name in assumed for name in ("num_classes", "mean", "std")) and "input_size" not in assumed


def test_what_is_given_fills_in_what_the_checkpoint_leaves_open(tmp_path, conv):
    torch.save(conv.state_dict(), tmp_path / "t.pth")
    teacher = checkpoints.load_teacher("conv3", str(tmp_path / "t.pth"), size_of_images=lambda: 16,
                                       mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    assert (teacher.input_size, teacher.mean, teacher.std) == (16, (0.5,) * 3, (0.2,) * 3)
    assert "input_size 16" in " ".join(teacher.assumed)


def test_the_checkpoint_is_right_about_itself(tmp_path, conv):
    checkpoints.save(tmp_path / "t.pth", conv, **FACTS)
    for wrong in {"arch": "resnet18"}, {"input_size": 32}, {"mean": [0.5] * 3}, {"stem": "imagenet"}:
        with pytest.raises(UserError) as error:
            checkpoints.load_teacher(wrong.get("arch"), str(tmp_path / "t.pth"),
                                     **{name: value for name, value in wrong.items() if name != "arch"})
        name, value = wrong.popitem()
        assert name in str(error.value) and str(FACTS[name] if name != "mean" else 0.1) in str(error.value)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("written", ["torch.save", "old torch.save", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, written):
    path, evil = tmp_path / "t.pth", {"model": {"w": Evil(str(tmp_path / "ran"))}}
    if written == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=written == "torch.save")
    with pytest.raises(UserError, match="t.pth"):
        checkpoints.read(path)
    assert not (tmp_path / "ran").exists()
    if written == "torch.save":  # It would have run:
        torch.load(path, weights_only=False)
        assert (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_one_error(tmp_path):
    path = tmp_path / "t.pth"
    contents = [b"", b"hello, I am no checkpoint\n", b"\x80\x02", b"version https://git-lfs.github.com/spec/v1\n"]
    for modern in True, False:
        torch.save({"model": {"w": torch.zeros(3)}}, path, _use_new_zipfile_serialization=modern)
        whole = path.read_bytes()
        contents += [whole[:length] for length in range(1, len(whole) - 1, 7)]
    crashes = {}
    for content in contents:
        path.write_bytes(content)
        try:
            assert "w" in checkpoints.read(path)["model"]  # a cut that only takes what nobody reads
        except UserError as error:
            assert str(path) in str(error)
        except Exception as error:
            crashes[type(error).__name__] = content[:20], len(content)
    assert not crashes


@pytest.mark.parametrize("content, complaint", [
    (torch.zeros(3), "Tensor"), ([1, 2], "list"), ({}, "no weights"), ({"model": {}}, "no weights"),
    ({"epoch": 3}, "'epoch' is not a tensor"), ({"model": {"w": "text"}}, "'w' is not a tensor")])
def test_a_checkpoint_without_weights(tmp_path, content, complaint):
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(UserError, match=complaint):
        checkpoints.read(tmp_path / "t.pth")


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoints.read(tmp_path / "t.pth")
    with pytest.raises(UserError):
        checkpoints.read(tmp_path)


def test_a_checkpoint_of_another_architecture(tmp_path, conv, resnets):
    torch.save(conv.state_dict(), tmp_path / "conv.pth")
    torch.save(resnets["cifar"].state_dict(), tmp_path / "resnet.pth")
    for path, arch in (("conv.pth", "conv4"), ("conv.pth", "resnet18"), ("resnet.pth", "resnet34"),
                       ("resnet.pth", "conv3"), ("resnet.pth", "mobilenet_v2")):
        with pytest.raises(UserError) as error:
            checkpoints.load_teacher(arch, str(tmp_path / path), input_size=16)
        assert arch in str(error.value) and path in str(error.value) and "--teacher-arch" in str(error.value)
    with pytest.raises(UserError, match="--teacher-arch"):
        checkpoints.load_teacher(None, str(tmp_path / "conv.pth"), input_size=16)
    with pytest.raises(UserError, match="resnet19"):
        checkpoints.load_teacher("resnet19", str(tmp_path / "conv.pth"), input_size=16)


@pytest.mark.parametrize("stem, other", [("cifar", "imagenet"), ("imagenet", "cifar")])
def test_the_stem_is_read_from_the_weights(tmp_path, resnets, stem, other):
    path = str(tmp_path / "t.pth")
    torch.save(resnets[stem].state_dict(), path)
    for size in 32, 224:
        teacher = checkpoints.load_teacher("resnet18", path, input_size=size)
        assert teacher.stem == stem
        assert torch.equal(answers(teacher.model, 32), answers(resnets[stem], 32))
    with pytest.raises(UserError) as error:
        checkpoints.load_teacher("resnet18", path, input_size=32, stem=other)
    assert f"--stem {stem}" in str(error.value)


def test_another_number_of_classes(tmp_path, conv):
    path = str(tmp_path / "t.pth")
    torch.save({"model": conv.state_dict(), "num_classes": 5}, path)
    with pytest.raises(UserError, match="5 classes"):
        checkpoints.load_teacher("conv3", path, input_size=16)

    torch.save(conv.state_dict(), path)
    teacher = checkpoints.load_teacher("conv3", path, input_size=16)
    for name in "ab":
        gray(tmp_path / "data" / name / "0.png", 0)
    with pytest.raises(UserError, match="--val-dir.* 2 classes.* 3"):
        cli.folder_for(teacher, str(tmp_path / "data"), "--val-dir")


def test_an_input_size_that_the_conv_net_was_not_made_for(tmp_path, conv):
    torch.save(conv.state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match="classifier.weight.*--input-size"):
        checkpoints.load_teacher("conv3", str(tmp_path / "t.pth"), input_size=32)


# --- networks ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("depth, features", [(3, 128 * 4 * 4), (4, 128 * 2 * 2), (5, 128), (6, None)])
def test_conv_net_parameters(depth, features):
    if features is None:
        with pytest.raises(UserError, match="conv6.*conv5"):
            models.build("conv6", 10, 32, "cifar")
        return
    weights = models.build(f"conv{depth}", 10, 32, "cifar").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {"classifier.weight": (10, features), "classifier.bias": (10,)}
    for d in range(depth):
        expected |= {f"layers.conv.{d}.weight": (128, 3 if d == 0 else 128, 3, 3), f"layers.conv.{d}.bias": (128,),
                     f"layers.norm.{d}.num_batches_tracked": ()}
        expected |= {f"layers.norm.{d}.{name}": (128,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shapes == expected


@pytest.mark.parametrize("stem, side", [("cifar", 32), ("imagenet", 8)])
def test_stem_decides_the_first_feature_map(resnets, stem, side):
    seen = []
    handle = resnets[stem].layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    answers(resnets[stem], 32)
    handle.remove()
    assert seen == [(2, 64, side, side)]


def test_the_small_stem_is_for_64_pixels_and_less():
    assert [models.default_stem(size) for size in (28, 32, 64, 65, 224)] == ["cifar"] * 3 + ["imagenet"] * 2


# --- images -----------------------------------------------------------------------------------------------------

def pixel(path, x, y):
    image = read_rgb(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


LADDER = np.array([[0, 1], [128, 255]], np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("bits", [8, 16])
def test_grayscale(tmp_path, suffix, bits):
    path = tmp_path / f"g.{suffix}"
    # 257 times a value of 8 bits is the same brightness in 16.
    Image.fromarray(LADDER if bits == 8 else LADDER.astype(np.uint16) * 257).save(path)
    with Image.open(path) as image:
        assert (image.mode == "L") == (bits == 8)
    assert [pixel(path, x, y) for y in range(2) for x in range(2)] == [(v, v, v) for v in (0, 1, 128, 255)]


def test_one_bit(tmp_path):
    Image.fromarray(LADDER > 100).save(tmp_path / "b.png")
    assert [pixel(tmp_path / "b.png", 0, y) for y in range(2)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("suffix, tolerance", [("tif", 0), ("jpg", 8)])
@pytest.mark.parametrize("ink, colour", [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)),
                                         ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))])
def test_cmyk(tmp_path, suffix, tolerance, ink, colour):
    path = tmp_path / f"c.{suffix}"
    Image.new("CMYK", (16, 16), ink).save(path)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(np.subtract(pixel(path, 8, 8), colour)).max() <= tolerance


@pytest.mark.parametrize("suffix, transparency", [("png", None), ("png", 1), ("png", bytes([255, 0, 128])),
                                                  ("gif", None), ("gif", 1)])
def test_palette(tmp_path, suffix, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220])
    for x in range(3):
        image.putpixel((x, 0), x)
    image.save(tmp_path / f"p.{suffix}", **({} if transparency is None else {"transparency": transparency}))
    found = [pixel(tmp_path / f"p.{suffix}", x, 0) for x in range(3)]
    # A transparent pixel keeps the colour it is stored with, as in torchvision's loader.
    assert found == [(200, 10, 20), (30, 210, 40), (50, 60, 220)]


def test_alpha_is_dropped(tmp_path):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (40, 50, 60, 7))
    image.save(tmp_path / "a.png")
    assert [pixel(tmp_path / "a.png", x, 0) for x in range(2)] == [(10, 20, 30), (40, 50, 60)]
    Image.new("LA", (1, 1), (77, 9)).save(tmp_path / "la.png")
    assert pixel(tmp_path / "la.png", 0, 0) == (77, 77, 77)


def claiming(path, width, height):
    """A PNG whose header claims this size."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


def harm(kind, path):
    if kind == "text":
        path.write_text("I am no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "huge":
        claiming(path, 12000, 10000)
    elif kind == "monstrous":
        claiming(path, 60000, 60000)
    else:
        noise(path, 0, 64)
        path.write_bytes(path.read_bytes()[:path.stat().st_size * 2 // 3])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind, name", [("cut", "x.png"), ("cut", "x.jpg"), ("cut", "x.webp"), ("text", "x.png"),
                                        ("empty", "x.jpg"), ("huge", "x.png"), ("monstrous", "x.png")])
@pytest.mark.parametrize("kept", [True, False])
def test_a_bad_image_is_named(tmp_path, monkeypatch, kind, name, kept):
    gray(tmp_path / "c" / "fine.png", 9)
    harm(kind, tmp_path / "c" / name)
    with pytest.raises(UserError) as error:
        read_rgb(tmp_path / "c" / name)
    assert f"c/{name}" in str(error.value)
    if kind in ("huge", "monstrous"):
        assert "pixels" in str(error.value), "refused for what it claims, before it is decoded"
    if not kept:  # A set too large for memory is only checked; 512 good images come before the check.
        monkeypatch.setattr("utils.images.IN_MEMORY_BYTES", 100)
        for k in range(512):
            os.link(tmp_path / "c" / "fine.png", tmp_path / "c" / f"f{k:03d}.png")
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path, "--train-dir").load(2)
    assert f"c/{name}" in str(error.value)


def test_ranks_check_a_share_each_of_a_set_too_large_for_memory_and_know_all_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.images.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("utils.images.SLICE", 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for number in range(14):
        noise(tmp_path / "c" / f"{number:02d}.png", 0, 30 + number)
    cut = (tmp_path / "c" / "08.png")
    cut.write_bytes(cut.read_bytes()[:-1000])
    told = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        try:
            assert ImageFolder(tmp_path, "--train-dir").load(2) == [(30 + number, 30 + number) for number in range(14)]
        except UserError as error:
            told.append(str(error))
    [message] = told
    assert str(cut) in message


def test_listing_is_sorted_whatever_the_order_of_creation(tmp_path):
    names = ["b/2.png", "a/10.png", "b/1.JPG", "a/z/0.jpeg", "a/9.png", "c/x.png"]
    expected = ["a/10.png", "a/9.png", "a/z/0.jpeg", "b/1.JPG", "b/2.png", "c/x.png"]
    for number, order in enumerate((names, names[::-1])):
        root = tmp_path / str(number)
        for name in order:
            gray(root / name, 1)
        (root / "a" / "notes.txt").write_text("no image")
        (root / "a" / ".hidden.png").write_text("no image")
        (root / ".cache").mkdir()
        folder = ImageFolder(root, "--train-dir")
        assert folder.classes == ["a", "b", "c"]
        assert folder.paths == expected
        assert folder.labels == [0, 0, 0, 1, 1, 2]


def test_labels_follow_the_given_order_of_classes(tmp_path):
    for k, name in enumerate("abc"):
        gray(tmp_path / name / "0.png", 10 * k)
    folder = ImageFolder(tmp_path, "--val-dir", ["c", "a", "b"])
    assert dict(zip(folder.paths, folder.labels)) == {"c/0.png": 0, "a/0.png": 1, "b/0.png": 2}
    assert [folder.read(k).getpixel((0, 0))[0] for k in range(3)] == [20, 0, 10]


def test_other_classes_name_both_sides(tmp_path):
    for name in "abx":
        gray(tmp_path / name / "0.png", 0)
    for classes, complaint in (("abcd", "missing: c, d; unknown: x"), ("abxc", "missing: c$"), ("ab", "unknown: x$")):
        with pytest.raises(UserError, match=f"--val-dir.*{complaint}"):
            ImageFolder(tmp_path, "--val-dir", list(classes))


def test_first_images_of_each_class(tmp_path):
    for k in reversed(range(3)):
        gray(tmp_path / "a" / f"{k:03d}_x.png", k)
        gray(tmp_path / "b" / f"{k:03d}_x.png", 10 + k)
    folder = ImageFolder(tmp_path, "--syn-dir").first(2)
    assert folder.paths == ["a/000_x.png", "a/001_x.png", "b/000_x.png", "b/001_x.png"]
    assert folder.labels == [0, 0, 1, 1]
    with pytest.raises(UserError, match="'a' has 3 images"):
        ImageFolder(tmp_path, "--syn-dir").first(4)


def test_png_is_lossless_and_jpg_close(tmp_path):
    pixels = torch.randint(256, (3, 9, 7), generator=torch.Generator().manual_seed(0)).byte()
    save_image(tmp_path / "new" / "x.png", pixels)
    found = np.asarray(read_rgb(tmp_path / "new" / "x.png"))
    assert np.array_equal(found, pixels.permute(1, 2, 0).numpy())
    # Random colours are the worst case: a mean error near 3 at quality 95, 6 at 90, and 47 with halved colour planes.
    pixels = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    save_image(tmp_path / "new" / "y.jpg", pixels)
    found = np.asarray(read_rgb(tmp_path / "new" / "y.jpg")).astype(int)
    assert np.abs(found - pixels.permute(1, 2, 0).numpy()).mean() < 4.5
    assert tree(tmp_path / "new") == ["x.png", "y.jpg"]
    with Image.open(tmp_path / "new" / "y.jpg") as image:
        assert image.format == "JPEG"


def test_an_image_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save_image(tmp_path / "x.png", torch.zeros(3, 4, 4).byte())
    before = (tmp_path / "x.png").read_bytes()

    def full(self, path, **options):
        with open(path, "wb") as file:
            file.write(b"half an im")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError):
        save_image(tmp_path / "x.png", torch.ones(3, 4, 4).byte())
    assert tree(tmp_path) == ["x.png"] and (tmp_path / "x.png").read_bytes() == before


# --- results ----------------------------------------------------------------------------------------------------

COLUMNS = "dataset,method,ipc,teacher,student,protocol,seed,top1,best_top1,top5,epochs,seconds,syn_dir"
RUN_FACTS = dict(dataset="cifar10", method='mine, "new"', ipc=10, teacher="resnet18", student="conv3", protocol="delt",
                 epochs=300, syn_dir="runs/é x/syn")


def result(seed, top1=43.0):
    return Result(seed, top1, top1 + 0.5, 91.0, 12.34, [{"epoch": 1, "loss": 0.5, "top1": top1}])


def lines(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_results_are_one_row_a_seed(tmp_path):
    run = results.Run(tmp_path, {"lr": 0.001}, RUN_FACTS)
    run.add(result(0))
    run.add(result(1, 44.126))
    header, *rows = lines(tmp_path)
    assert ",".join(header) == COLUMNS
    same = ["cifar10", 'mine, "new"', "10", "resnet18", "conv3", "delt"]
    assert rows == [[*same, "0", "43.00", "43.50", "91.00", "300", "12.3", "runs/é x/syn"],
                    [*same, "1", "44.13", "44.63", "91.00", "300", "12.3", "runs/é x/syn"]]
    assert [row["top1"] for row in results.read_rows(tmp_path / "results.csv")] == ["43.00", "44.13"]

    again = results.Run(tmp_path, {"lr": 0.001}, RUN_FACTS)
    assert again.results == {0: result(0), 1: result(1, 44.126)}
    other = results.Run(tmp_path, {"lr": 0.002}, RUN_FACTS)
    assert other.results == {}
    other.add(result(0, 50.0))
    assert len(lines(tmp_path)) == 4
    assert len(list((tmp_path / "results").iterdir())) == 2
    assert not [name for name in tree(tmp_path) if "partial" in name]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_killed_run_has_one_row_a_seed_in_the_end(tmp_path, monkeypatch, last):
    """Killed after `last` of the files that a seed replaces."""
    results.Run(tmp_path, {}, RUN_FACTS).add(result(0))
    replace, done = os.replace, []

    def killed(*paths):
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            results.Run(tmp_path, {}, RUN_FACTS).add(result(1))
    # What validate does when it is started again.
    run = results.Run(tmp_path, {}, RUN_FACTS)
    for seed in range(3):
        if seed not in run.results:
            run.add(result(seed))
    assert sorted(row["seed"] for row in results.read_rows(tmp_path / "results.csv")) == ["0", "1", "2"]
    assert sorted(results.Run(tmp_path, {}, RUN_FACTS).results) == [0, 1, 2]


def test_results_of_other_columns_are_left_alone(tmp_path):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="results.csv"):
        results.Run(tmp_path, {}, RUN_FACTS).add(result(0))
    assert (tmp_path / "results.csv").read_text() == "a,b\n1,2\n"


def test_a_teacher_of_safetensors_is_the_same_teacher(place):
    from safetensors.torch import save_file
    content = checkpoints.read(place.teacher)
    facts = {name: json.dumps(content[name]) for name in ("arch", "stem", "num_classes", "classes", "input_size", "mean", "std")}
    save_file(content["model"], place / "teacher.safetensors", {**facts, "format": "pt"})
    place.works("ranking")
    place.works("ranking", teacher_path=place / "teacher.safetensors", ranking_file=place / "again.csv", output_dir=None)
    assert (place / "again.csv").read_bytes() == (place / "ranking.csv").read_bytes()
    (place / "teacher.safetensors").write_bytes(b"\xff" * 100)
    outcome = place.run("ranking", teacher_path=place / "teacher.safetensors", ranking_file=place / "third.csv")
    assert outcome.code == 2 and "safetensors" in outcome.err and len(outcome.err.splitlines()) == 1


def test_summary_is_mean_and_sample_deviation():
    found = results.summary([result(0, 40.0), result(1, 42.0), result(2, 47.0)])
    # Deviations -3, -1, 4: (9 + 1 + 16) / 2 = 13.
    assert found == {"top1_mean": 43.0, "top1_std": pytest.approx(13**0.5, abs=1e-4), "best_top1_mean": 43.5}
    assert results.summary([result(0)])["top1_std"] == 0


@pytest.mark.parametrize("classes, ipc, batch", [
    (10, 1, 10), (10, 10, 50), (10, 20, 50), (10, 30, 100), (10, 50, 100), (10, 100, 100),
    (100, 1, 20), (100, 10, 100), (100, 50, 200), (1000, 1, 20), (1000, 10, 100), (1000, 50, 200),
    (200, 1, 100), (200, 10, 100), (200, 50, 100),
    (3, 1, 3), (2, 10, 20), (2, 30, 60)])  # never more than the set
def test_default_batch_size(classes, ipc, batch):
    assert resolve(PROTOCOLS["delt"], "conv3", classes, ipc, classes * ipc, 32, 1).batch_size == batch


@pytest.mark.parametrize("arch, lr", [
    ("resnet18", 0.001), ("resnet50", 0.001), ("conv3", 0.001), ("efficientnet_b0", 0.002), ("mobilenet_v2", 0.0025),
    ("vgg11", 0.0005), ("alexnet", 0.0001), ("vit_b_16", 0.0001), ("swin_v2_t", 0.0001),
    ("resnet101", 0.001), ("timm/resnet18", 0.001)])
def test_default_learning_rate(arch, lr):
    assert default_lr(arch) == lr


def test_students_learning_rate_ends_at_half():
    assert learning_rate(0, 300) == 1
    assert learning_rate(150, 300) == pytest.approx((2 + 2**0.5) / 4)
    assert learning_rate(299, 300) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("epochs, evaluations, expected", [
    (300, 5, {60, 120, 180, 240, 300}), (1, 5, {1}), (3, 5, {1, 2, 3}), (10, 1, {10}), (4, 4, {1, 2, 3, 4})])
def test_evaluated_epochs(epochs, evaluations, expected):
    assert evaluated_epochs(epochs, evaluations) == expected


def test_the_last_epoch_is_always_evaluated():
    for epochs in range(1, 40):
        for evaluations in range(1, 12):
            found = evaluated_epochs(epochs, evaluations)
            assert max(found) == epochs and min(found) >= 1 and len(found) <= evaluations


# --- files and random streams -----------------------------------------------------------------------------------

def test_replacing(tmp_path):
    path = tmp_path / "new" / "x.txt"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "one" and tree(path.parent) == ["x.txt"]
    for error in ValueError, KeyboardInterrupt:
        with pytest.raises(error):
            with replacing(path) as temporary:
                temporary.write_text("tw")
                assert path.read_text() == "one"
                raise error
        assert path.read_text() == "one" and tree(path.parent) == ["x.txt"]


def test_replacing_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, host = ended.pid, os.uname().nodename
    left = f".x|[*].{host}.{dead}.partial.txt"
    stays = [f".x|[*].{host}.{os.getppid()}.partial.txt",  # at work just now, perhaps
             f".x|[*].another-machine.{dead}.partial.txt", f".x|[*].{host}.{dead}.partial.png", f".y.{host}.{dead}.partial.txt",
             f".x|[*].{host}.mine.partial.txt"]
    for name in [left, *stays]:
        (tmp_path / name).touch()
    with replacing(tmp_path / "x|[*].txt") as temporary:
        temporary.write_text("one")
    assert tree(tmp_path) == sorted([*stays, "x|[*].txt"])


def draws():
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def test_seeded_blocks_repeat_and_leave_no_trace():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = [draws() for _ in range(2)]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    first = draws()
    with seeded(0, "a"):
        inside = draws()
    assert [first, draws()] == expected
    with seeded(0, "a"):
        assert draws() == inside
    with seeded(0, "b"):
        assert all(x != y for x, y in zip(draws(), inside))
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    with pytest.raises(ValueError):
        with seeded(5):
            draws()
            raise ValueError
    assert draws() == expected[0]


def test_streams_are_told_apart_by_their_names():
    names = [("a", "bc"), ("ab", "c"), ("abc",), ("a", "b", "c"), (0, "recover", 1), (0, "recover", 2),
             (1, "recover", 1), (0, "recover", 11), (0, "recover1", 1), (0, 1), (1, 0), (1,), (10,), ()]
    seeds = [stream_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert [stream_seed(*name) for name in names] == seeds
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator("a", 1)), torch.rand(3, generator=generator("a", 1)))
    assert not torch.equal(torch.rand(3, generator=generator("a", 1)), torch.rand(3, generator=generator("a", 2)))


@pytest.mark.parametrize("precision, repaid", [("fp32", 2000), ("bf16", 300), ("fp16", 300)])
def test_a_compilation_is_made_when_the_steps_repay_it(precision, repaid, monkeypatch):
    monkeypatch.setattr(machine, "_has_compiler", lambda device: True)

    def compiles(mode, steps):
        return Runtime(torch.device("cpu"), precision, mode).compiles(steps)

    assert not compiles("auto", repaid - 1) and compiles("auto", repaid)
    assert not compiles("off", 10**6) and compiles("on", 1)
    monkeypatch.setattr(machine, "_has_compiler", lambda device: False)
    assert not compiles("auto", repaid)


def test_an_uncompiled_function_is_itself():
    assert Runtime(torch.device("cpu"), "fp32", "auto").compiled(abs, 1) is abs
