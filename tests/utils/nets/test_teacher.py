"""Teachers: a checkpoint, what it says of itself, and what is given or assumed for the rest."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import CONV3_FACTS
from utils.data.geometry import GeometryFlags
from utils.nets import checkpoints, models
from utils.nets.teacher import beside, load_teacher, unsaid_in, unsaid_of
from utils.run.errors import UserError

IN_GEOMETRY = ("stem", "num_classes", "classes", "input_size", "mean", "std")


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


def load(arch, path, size_of_images=None, **given):
    return load_teacher(arch, str(path), GeometryFlags(**given), size_of_images)


def test_a_checkpoint_of_squeeze_says_everything(tmp_path, conv):
    path = tmp_path / "teacher.pth"
    checkpoints.save(path, conv, **CONV3_FACTS)
    teacher = load(None, path)
    assert teacher.arch == "conv3" and teacher.top1 == 61.25 and teacher.assumed == ()
    for name in IN_GEOMETRY:
        found = getattr(teacher.geometry, name)
        assert (list(found) if isinstance(CONV3_FACTS[name], list) else found) == CONV3_FACTS[name], name
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())
    assert torch.equal(answers(teacher.network), answers(conv))


@pytest.mark.parametrize(
    "dataset, said", [("cifar10", ["--mean 0.4914 0.4822 0.4465", "--std 0.247 0.2435 0.2616"]), ("imagenette", [])]
)
def test_of_a_known_data_set_the_normalisation_that_is_not_assumed_is_named(tmp_path, dataset, said):
    """Its own is no more likely than ImageNet's, by which RDED's networks of CIFAR-10 were trained."""
    torch.save(models.build("conv3", 10, 16, "cifar").state_dict(), tmp_path / "bare.pth")
    teacher = load_teacher("conv3", str(tmp_path / "bare.pth"), GeometryFlags(dataset=dataset, input_size=16))
    assumed = " ".join(teacher.assumed)
    assert teacher.geometry.mean == (0.485, 0.456, 0.406)
    assert all(words in assumed for words in said) and ("--mean" in assumed) == bool(said)


def test_bare_weights_are_completed_by_what_is_assumed(tmp_path, conv):
    torch.save({"module." + name: tensor for name, tensor in conv.state_dict().items()}, tmp_path / "t.pth")
    teacher = load("conv3", tmp_path / "t.pth", input_size=16)
    assert torch.equal(answers(teacher.network), answers(conv))
    geometry = teacher.geometry
    assert geometry.num_classes == 3 and geometry.classes is None
    assert geometry.mean == (0.485, 0.456, 0.406) and geometry.std == (0.229, 0.224, 0.225)
    assumed = " ".join(teacher.assumed)
    assert all(name in assumed for name in ("num_classes", "mean", "std")) and "input_size" not in assumed


def test_what_is_given_completes_the_checkpoint(tmp_path, conv):
    torch.save(conv.state_dict(), tmp_path / "t.pth")
    teacher = load("conv3", tmp_path / "t.pth", lambda: (16, "the images"), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    geometry = teacher.geometry
    assert (geometry.input_size, geometry.mean, geometry.std) == (16, (0.5,) * 3, (0.2,) * 3)
    assumed = " ".join(teacher.assumed)
    assert "input_size 16" in assumed and "mean" not in assumed and "std" not in assumed


def test_a_data_set_completes_the_checkpoint(tmp_path):
    torch.save(models.build("conv3", 10, 32, "cifar").state_dict(), tmp_path / "t.pth")
    geometry = load("conv3", tmp_path / "t.pth", dataset="cifar10").geometry
    assert geometry.input_size == 32
    with pytest.raises(UserError, match="--input-size or --dataset"):
        load("conv3", tmp_path / "t.pth")
    with pytest.raises(UserError, match="cifar11.*cifar10"):
        load("conv3", tmp_path / "t.pth", dataset="cifar11")


def test_no_flag_overrides_what_the_checkpoint_says(tmp_path, conv):
    checkpoints.save(tmp_path / "t.pth", conv, **CONV3_FACTS)
    for name, wrong in {"arch": "resnet18", "input_size": 32, "mean": (0.5,) * 3, "stem": "imagenet"}.items():
        with pytest.raises(UserError) as error:
            if name == "arch":
                load(wrong, tmp_path / "t.pth")
            else:
                load(None, tmp_path / "t.pth", **{name: wrong})
        assert name in str(error.value) and str(CONV3_FACTS[name] if name != "mean" else 0.1) in str(error.value)
    same = {"input_size": 16, "mean": (0.1, 0.2, 0.3), "stem": "cifar"}
    assert torch.equal(answers(load("conv3", tmp_path / "t.pth", **same).network), answers(conv))


def test_a_checkpoint_of_another_architecture(tmp_path, conv, resnets):
    torch.save(conv.state_dict(), tmp_path / "conv.pth")
    torch.save(resnets["cifar"].state_dict(), tmp_path / "resnet.pth")
    for path, arch in (
        ("conv.pth", "conv4"),
        ("conv.pth", "resnet18"),
        ("resnet.pth", "resnet34"),
        ("resnet.pth", "conv3"),
        ("resnet.pth", "mobilenet_v2"),
    ):
        with pytest.raises(UserError) as error:
            load(arch, tmp_path / path, input_size=16)
        assert arch in str(error.value) and path in str(error.value) and "--teacher-arch" in str(error.value)
    with pytest.raises(UserError, match="--teacher-arch"):
        load(None, tmp_path / "conv.pth", input_size=16)
    with pytest.raises(UserError, match="resnet19"):
        load("resnet19", tmp_path / "conv.pth", input_size=16)


@pytest.mark.parametrize("stem, other", [("cifar", "imagenet"), ("imagenet", "cifar")])
def test_the_stem_is_read_from_the_weights(tmp_path, resnets, stem, other):
    path = tmp_path / "t.pth"
    torch.save(resnets[stem].state_dict(), path)
    for size in 32, 224:
        teacher = load("resnet18", path, input_size=size)
        assert teacher.geometry.stem == stem
        assert torch.equal(answers(teacher.network, 32), answers(resnets[stem], 32))
    with pytest.raises(UserError) as error:
        load("resnet18", path, input_size=32, stem=other)
    assert f"--stem {stem}" in str(error.value)


OURS, THEIRS = (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)  # of a mean


@pytest.mark.parametrize("arch, says", [("conv3", True), ("conv3", False), ("mobilenet_v2", True)])
def test_the_identity_of_weights_that_tell_their_stem_is_that_of_earlier_versions(tmp_path, arch, says):
    """What is in the records of earlier runs: without a stem."""
    facts = {"arch": arch, "stem": "cifar"} if says else {"arch": arch}
    checkpoints.save(tmp_path / "t.pth", models.build(arch, 3, 16, "cifar"), **facts)
    teacher = load(None, tmp_path / "t.pth", input_size=16, mean=OURS, std=THEIRS)
    digest = hashlib.sha256((tmp_path / "t.pth").read_bytes()).hexdigest()
    assert teacher.identity() == {"teacher": digest, "input_size": 16, "mean": list(OURS), "std": list(THEIRS)}


@pytest.mark.parametrize(
    "given, stem", [({}, "cifar"), ({"stem": "cifar"}, "cifar"), ({"stem": "imagenet"}, "imagenet")]
)
def test_the_identity_has_a_stem_that_nothing_but_a_flag_tells(tmp_path, given, stem):
    torch.save(models.build("mobilenet_v2", 3, 16, "cifar").state_dict(), tmp_path / "t.pth")
    assert load("mobilenet_v2", tmp_path / "t.pth", input_size=16, **given).identity()["stem"] == stem


@pytest.mark.parametrize("written", [{}, {"arch": "efficientnet_b0"}])  # the second as timm's own scripts name it
def test_the_identity_has_an_architecture_that_nothing_but_a_flag_tells(tmp_path, written):
    """timm's tf_efficientnet_b0 has weights of the same names and shapes, and pads in other places."""
    network = models.build("timm/efficientnet_b0", 3, 32, "imagenet")
    torch.save({"model": network.state_dict(), "stem": "imagenet", **written}, tmp_path / "t.pth")
    assert load("timm/efficientnet_b0", tmp_path / "t.pth", input_size=32).identity()["arch"] == "timm/efficientnet_b0"
    torch.save({"model": network.state_dict(), "stem": "imagenet"}, tmp_path / "t.pth")
    other = load("timm/tf_efficientnet_b0", tmp_path / "t.pth", input_size=32)
    assert other.identity()["arch"] == "timm/tf_efficientnet_b0"


@pytest.mark.parametrize(
    "second, given, found",
    [
        ({"mean": THEIRS, "std": OURS}, {}, {}),  # its digest says it
        ({"std": OURS}, {"mean": OURS}, {}),  # as the first one's
        ({"std": OURS}, {"mean": THEIRS}, {"mean of teacher 2": list(THEIRS)}),
        ({}, {}, {"mean of teacher 2": [0.485, 0.456, 0.406], "std of teacher 2": [0.229, 0.224, 0.225]}),
    ],
)
def test_a_record_of_several_has_what_neither_the_files_nor_the_first_one_say(tmp_path, conv, second, given, found):
    checkpoints.save(tmp_path / "a.pth", conv, arch="conv3", mean=OURS, std=OURS)
    checkpoints.save(tmp_path / "b.pth", conv, arch="conv3", **second)
    teachers = [load(None, tmp_path / "a.pth", input_size=16), load(None, tmp_path / "b.pth", input_size=16, **given)]
    record = beside({"mean": list(OURS), "std": list(OURS)}, unsaid_of(teachers))
    assert record == found
    assert unsaid_in({"mean": list(OURS), "teachers": ["a", "b"], **record}) == found


def test_another_number_of_classes(tmp_path, conv):
    path = tmp_path / "t.pth"
    torch.save({"model": conv.state_dict(), "num_classes": 5}, path)
    with pytest.raises(UserError, match="5 classes"):
        load("conv3", path, input_size=16)


def test_an_input_size_that_the_conv_net_was_not_made_for(tmp_path, conv):
    torch.save(conv.state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match="classifier.weight.*--input-size"):
        load("conv3", tmp_path / "t.pth", input_size=32)


def test_only_imagenet1k_goes_without_a_checkpoint():
    for arch, given in (("conv3", {}), (None, {"dataset": "imagenet1k"}), ("resnet18", {"dataset": "imagenette"})):
        with pytest.raises(UserError, match="no teacher: give --teacher-path"):
            load_teacher(arch, None, GeometryFlags(**given))
    with pytest.raises(UserError, match="conv3"):
        load_teacher("conv3", None, GeometryFlags(dataset="imagenet1k"))


def test_a_teacher_of_safetensors_is_the_same_teacher(place):
    content = checkpoints.read(place.teacher)
    facts = {name: json.dumps(content[name]) for name in ("arch", *IN_GEOMETRY)}
    save_file(content["model"], place / "teacher.safetensors", {**facts, "format": "pt"})
    place.works("ranking")
    other = {"teacher_path": place / "teacher.safetensors", "output_dir": None}
    place.works("ranking", ranking_file=place / "again.csv", **other)
    assert (place / "again.csv").read_bytes() == (place / "ranking.csv").read_bytes()
    (place / "teacher.safetensors").write_bytes(b"\xff" * 100)
    outcome = place.run("ranking", ranking_file=place / "third.csv", **other)
    assert outcome.code == 2 and "safetensors" in outcome.err and len(outcome.err.splitlines()) == 1
