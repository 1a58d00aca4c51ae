"""Arguments that cannot be are one clear line that names them, exit code 2, and nothing written."""

import pytest
import torch

from conftest import INPUT
from refusals import STAGES, refused


def spelt(value):
    """Names a case by its stage and its flags."""
    if isinstance(value, dict):
        return " ".join(f"{name}={setting}" for name, setting in value.items())
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    "stage, changes, named",
    [
        ("recover", dict(iterations=10, round_iterations=4), ["10", "4", "multiple"]),
        ("recover", dict(iterations=2, round_iterations=4), ["2", "4", "multiple"]),
        ("recover", dict(batch_size=3), ["--batch-size", "3", "4"]),
        ("recover", dict(ipc=0), ["--ipc", "'0'"]),
        ("recover", dict(iterations=0), ["--iterations"]),
        ("recover", dict(min_crop=0), ["--min-crop"]),
        ("recover", dict(min_crop=1.5), ["--min-crop", "1.5"]),
        ("recover", dict(milestone=-0.5), ["--milestone"]),
        ("recover", dict(lr="nan"), ["--lr", "nan"]),
        ("recover", dict(r_bn="inf"), ["--r-bn", "inf"]),
        ("recover", dict(jitter=-1), ["--jitter"]),
        ("recover", dict(curriculum="none"), ["--curriculum", "none"]),
        ("recover", dict(image_format="gif"), ["--image-format", "gif"]),
        ("recover", dict(init_dir=None), ["--init-dir"]),
        ("recover", dict(seed=-1), ["--seed"]),
        ("recover", dict(method="best"), ["--method", "best", "delt"]),
        ("recover", dict(objective="none"), ["--objective", "none"]),
        ("recover", dict(option="colour=red"), ["--option", "colour=red"]),
        ("squeeze", dict(epochs=-1), ["--epochs", "-1"]),
        ("squeeze", dict(epochs="many"), ["--epochs", "many"]),
        ("squeeze", dict(lr="nan"), ["--lr", "nan"]),
        ("squeeze", dict(lr=1e30), ["--lr", "loss"]),
        ("squeeze", dict(mean=("nan", 0, 0)), ["--mean", "nan"]),
        ("squeeze", dict(batch_size=0), ["--batch-size"]),
        ("squeeze", dict(label_smoothing=2), ["--label-smoothing"]),
        ("squeeze", dict(arch="resnet19"), ["resnet19"]),
        ("squeeze", dict(arch="conv6"), ["conv6", str(INPUT)]),
        ("squeeze", dict(dataset="cifar10"), ["cifar10", "10", "3"]),
        ("ranking", dict(ipc=0), ["--ipc"]),
        ("ranking", dict(criterion="best"), ["--criterion", "best"]),
        ("ranking", dict(ranking_file=None, output_dir=None), ["--ranking-file", "--output-dir"]),
        ("validate", dict(ipc=0), ["--ipc"]),
        ("validate", dict(temperature=0), ["--temperature"]),
        ("validate", dict(min_scale=0), ["--min-scale"]),
        ("validate", dict(min_scale=0.9, max_scale=0.5), ["--min-scale", "--max-scale"]),
        ("validate", dict(rand_augment="often"), ["--rand-augment", "often"]),
        ("validate", dict(mix="blend"), ["--mix", "blend"]),
        ("validate", dict(protocol="best"), ["--protocol", "best", "delt"]),
        ("validate", dict(lr=-1), ["--lr"]),
        ("validate", dict(student_arch=["conv3", "nosuchnet"]), ["nosuchnet"]),
        ("validate", dict(student_arch=["conv3", "conv6"]), ["conv6", str(INPUT)]),
        ("validate", dict(labels="hard", teacher_path=None), ["--student-arch"]),
        ("validate", dict(method=["one", "two"]), ["--method"]),
        (
            "validate",
            dict(labels="hard", teacher_path=None, student_arch="conv3", dataset="cifar10"),
            ["cifar10", "10", "3"],
        ),
    ],
    ids=spelt,
)
def test_a_value_that_cannot_be(place, stage, changes, named):
    refused(place, stage, *named, **changes)


@pytest.mark.parametrize("stage", STAGES)
def test_flags_and_values_that_no_stage_takes(place, stage):
    refused(place, stage, "--colour", colour="red")
    refused(place, stage, "cifar11", "cifar10", dataset="cifar11")
    refused(place, stage, "--precision", precision="fp8")
    refused(place, stage, "--stem", stem="none")
    refused(place, stage, "--mean", mean=(0.5, 0.5))


@pytest.mark.parametrize("stage", STAGES)
def test_a_normalisation_of_pixels_from_0_to_255(place, stage):
    refused(place, stage, "--mean 127.5 51 0", "--mean 0.5 0.2 0", mean=(127.5, 51, 0), std=(0.2, 0.2, 0.2))
    refused(place, stage, "--std 51 51 51", "--std 0.2 0.2 0.2", std=(51, 51, 51), mean=None)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("device", ["cuda:7", "toaster", "meta", ""])
def test_a_device_that_is_not_there(place, stage, device):
    assert torch.cuda.device_count() < 8
    refused(place, stage, "--device", device, device=device)


@pytest.mark.parametrize("numbers", [(0, 0, 0), (0.5, -0.5, 0.5), ("nan", 1, 1)], ids=["zero", "negative", "nan"])
def test_a_deviation_that_cannot_be_divided_by(place, numbers):
    refused(place, "squeeze", "--std", std=numbers)


@pytest.mark.parametrize("arch", ["alexnet", "vit_b_16"])
def test_a_network_that_takes_no_images_so_small(place, arch):
    """AlexNet pools 14 pixels away; ViT-B/16 cannot cut them into patches of 16."""
    refused(place, "squeeze", arch, INPUT, arch=arch, epochs=1)


@pytest.mark.parametrize("stage", ["squeeze", "validate"])
def test_batches_of_a_single_image(place, stage):
    """A single image has no statistics for BatchNorm: without this nothing would be trained, in silence."""
    refused(place, stage, "--batch-size", batch_size=1)


@pytest.mark.parametrize(
    "env", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "first", "WORLD_SIZE": "2"}], ids=["beyond", "word"]
)
def test_a_rank_that_cannot_be(place, env):
    refused(place, "recover", "RANK", env["RANK"], env=env)
