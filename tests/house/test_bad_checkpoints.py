"""Checkpoints that cannot be used are one clear line that names them, exit code 2, and nothing written."""

import pickle
import urllib.error
import zipfile

import pytest
import torch
import torchvision

from conftest import INPUT, draw
from refusals import refused

TEACHERS = ("ranking", "recover", "validate")


def weights_of(place):
    return torch.load(place.teacher, weights_only=True)["model"]


def replace_teacher(place, **facts):
    """The teacher with other facts; None takes one away."""
    content = {**torch.load(place.teacher, weights_only=True), **facts}
    torch.save({name: value for name, value in content.items() if value is not None}, place.teacher)


def cut(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


@pytest.mark.parametrize("stage", TEACHERS)
def test_a_checkpoint_of_another_architecture(place, stage):
    refused(place, stage, place.teacher, "conv3", "conv4", teacher_arch="conv4")
    bare = place / "bare.pth"
    torch.save(weights_of(place), bare)
    refused(place, stage, bare, "--teacher-arch", teacher_path=bare)
    refused(place, stage, bare, "conv4", "layers.conv.3", teacher_path=bare, teacher_arch="conv4", input_size=16)
    refused(place, stage, "nosuchnet", teacher_path=bare, teacher_arch="nosuchnet")


def test_a_checkpoint_of_another_stem(place):
    """3 x 3 is the small-image stem's first convolution, 7 x 7 ImageNet's."""
    weights, bare = torchvision.models.resnet18(num_classes=3).state_dict(), place / "resnet.pth"
    for own, other, width in (("imagenet", "cifar", 7), ("cifar", "imagenet", 3)):
        weights["conv1.weight"] = torch.zeros(64, 3, width, width)
        torch.save(weights, bare)
        refused(place, "ranking", bare, own, "--stem", teacher_path=bare, teacher_arch="resnet18", stem=other)
    refused(place, "ranking", place.teacher, "cifar", "imagenet", stem="imagenet")


@pytest.mark.parametrize("stage, folder", [("ranking", "train"), ("recover", "init"), ("validate", "init")])
def test_a_checkpoint_of_another_number_of_classes(place, stage, folder):
    replace_teacher(place, classes=None)
    draw(place / folder / "wasp", (90, 90, 90), 7, "wasp")
    refused(place, stage, place / folder, "4 classes", "3")
    replace_teacher(place, classes=["a", "b", "c", "d"], num_classes=4)
    refused(place, stage, place.teacher, "4 classes")


def test_a_checkpoint_of_another_size(place):
    refused(place, "ranking", place.teacher, INPUT, 16, input_size=16)
    replace_teacher(place, input_size=16)
    refused(place, "ranking", place.teacher, "classifier.weight", 16)


@pytest.mark.parametrize("stage", TEACHERS)
def test_a_checkpoint_whose_normalisation_is_of_pixels_from_0_to_255(place, stage):
    replace_teacher(place, mean=[127.5, 51.0, 0.0], std=[51.0, 51.0, 51.0])
    words = "its mean 127.5 51 0", "its mean 0.5 0.2 0 its std 0.2 0.2 0.2"
    refused(place, stage, place.teacher, *words)
    replace_teacher(place, mean=[0.5, 0.5, 0.5], std=[51.0, 51.0, 51.0])
    refused(place, stage, place.teacher, "its std 51 51 51", "its std 0.2 0.2 0.2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        bytes(1000),
        pickle.dumps({"model": pickle.Unpickler}, 2),
        pickle.dumps([1, 2], 2),
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"\x80\x02.",
        b"PK\x03\x04" + bytes(60),
    ],
    ids=["empty", "text", "zeros", "objects", "list", "png", "hollow pickle", "hollow zip"],
)
@pytest.mark.parametrize("stage", ["ranking", "squeeze"])
def test_a_file_that_is_no_checkpoint(place, stage, content):
    """As the teacher, and as what squeeze would write over."""
    path = place.teacher if stage == "ranking" else place / "squeezed.pth"
    path.write_bytes(content)
    refused(place, stage, path)


@pytest.mark.parametrize(
    "content",
    [[1, 2], {}, {"model": {}}, {"epoch": 3}, torch.zeros(3)],
    ids=["list", "nothing", "no weights", "number", "tensor"],
)
def test_a_checkpoint_without_weights(place, content):
    torch.save(content, place.teacher)
    refused(place, "ranking", place.teacher)


@pytest.mark.parametrize("stage", TEACHERS)
def test_a_checkpoint_that_is_cut_off_foreign_missing_or_a_folder(place, stage):
    cut(place.teacher)
    refused(place, stage, place.teacher)
    with zipfile.ZipFile(place.teacher, "w") as archive:
        archive.writestr("something.txt", "else")
    refused(place, stage, place.teacher)
    place.teacher.unlink()
    refused(place, stage, place.teacher, "no such")
    place.teacher.mkdir()
    refused(place, stage, place.teacher)


@pytest.mark.parametrize("stage", TEACHERS)
def test_no_teacher_at_all(place, stage):
    refused(place, stage, "--teacher-path", teacher_path=None)


@pytest.mark.parametrize("stage", TEACHERS)
def test_pretrained_weights_without_a_network(place, stage, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    refused(
        place,
        stage,
        "resnet18",
        "Name or service not known",
        "--teacher-path",
        teacher_path=None,
        teacher_arch="resnet18",
        dataset="imagenet1k",
    )


def test_noise_without_classes_or_size(place):
    """Neither the teacher nor a folder says what to make."""
    noise = dict(init="noise", init_dir=None, round_iterations=0)
    replace_teacher(place, classes=None)
    refused(place, "recover", "the teacher does not name its classes", "--init-dir", **noise)
    replace_teacher(place, input_size=None)
    refused(place, "recover", place.teacher, "--input-size", **noise)
