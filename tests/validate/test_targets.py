"""What students learn from: losses, teachers' logits, the classes, weights of images."""

import json
import math
import os

import pytest
import torch
from torch import distributed as dist

from helpers import CPU
from students import geometry, noise_folder, protocol, small_student, stream
from utils.data.image_folder import ImageFolder
from utils.nets.teacher import Teacher
from utils.run import distributed
from utils.run.errors import UserError
from validate.stream import Step
from validate.targets import Teachers, hard_labelled, image_weights, student_losses


def step_of(images, labels=None, order=None, batch_size=None):
    count = len(images)
    labels = torch.zeros(count, dtype=torch.long) if labels is None else labels
    order = torch.arange(count) if order is None else order
    views, shares = torch.zeros(count, 5, dtype=torch.long), torch.zeros(count, 4)
    return Step(images, labels, shares, order, views, torch.tensor([1.0, 0, 0, 0, 0]), batch_size or count)


def losses_of(logits, target, settings, **step):
    """The product's loss of each image, where the student's answer is `logits`."""
    return student_losses(settings)(lambda images: images, (step_of(logits, **step), target))


def draws(count=7, classes=5, scale=10):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(count, classes, generator=generator, dtype=torch.float64) for _ in range(2)]


def softmax(logits, temperature=1.0):
    raw = torch.exp(logits.double() / temperature)
    return raw / raw.sum(1, keepdim=True)


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_the_divergence_from_the_teacher(temperature):
    student, teacher = draws()
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    expected = (p * (p.log() - q.log())).sum(1)  # no factor of the temperature squared

    logits = student.float().requires_grad_()
    losses = losses_of(logits, p.float(), protocol(temperature=temperature))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-7)
    losses.mean().backward()
    # d KL / d logits = (q - p) / (T * batch)
    torch.testing.assert_close(logits.grad.double(), (q - p) / (temperature * 7), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("class_weight", [0.0, 0.025, 2.0])
def test_mse_is_on_logits_with_a_share_of_the_unmixed_class(class_weight):
    student, teacher = draws()
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    own, q = torch.eye(5, dtype=torch.float64)[labels], softmax(student)
    expected = ((student - teacher) ** 2).sum(1) / 5 - class_weight * (own * q.log()).sum(1)

    logits = student.float().requires_grad_()
    losses = losses_of(logits, teacher.float(), protocol(loss="mse", class_weight=class_weight), labels=labels)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    losses.mean().backward()
    gradient = (2 * (student - teacher) / 5 + class_weight * (q - own)) / 7
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-4, atol=1e-7)


def test_ce_is_to_the_probabilities_of_the_target():
    student, teacher = draws()
    p, q = softmax(teacher), softmax(student)
    logits = student.float().requires_grad_()
    losses = losses_of(logits, p.float(), protocol(loss="ce"))
    torch.testing.assert_close(losses.double(), -(p * q.log()).sum(1), rtol=1e-5, atol=1e-6)
    losses.mean().backward()
    torch.testing.assert_close(logits.grad.double(), (q - p) / 7, rtol=1e-4, atol=1e-7)


def test_hard_labels_are_the_shares_of_the_mixed_classes(tmp_path):
    batches = stream(noise_folder(tmp_path), epochs=1, batch_size=6, labels="hard", rand_augment="none", mix="mixup")
    for step, target in hard_labelled(batches):
        own = step.mix[0].double()
        hot = torch.eye(4, dtype=torch.float64)[step.labels]
        shares = own * hot + (1 - own) * hot.roll(1, 0)
        torch.testing.assert_close(target.double(), shares, rtol=1e-6, atol=1e-7)
        logits = step.images.flatten(1)[:, :4]
        losses = student_losses(batches.protocol)(lambda images: images.flatten(1)[:, :4], (step, target))
        torch.testing.assert_close(losses.double(), -(shares * softmax(logits).log()).sum(1), rtol=1e-5, atol=1e-6)


# --- teachers ----------------------------------------------------------------------------------------------------


class Recorder(torch.nn.Module):
    """Answers with its first pixels times `factor`, and keeps what it saw."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor, self.seen = torch.nn.Parameter(torch.tensor(factor)), []

    def forward(self, images):
        self.seen.append(images)
        return self.factor * images.flatten(1)[:, :4]


@pytest.mark.parametrize("temperature", [4.0, 20.0])
def test_the_teacher_labels_the_mixed_images_at_the_temperature(tmp_path, temperature):
    batches = stream(noise_folder(tmp_path), epochs=1, batch_size=12, temperature=temperature)
    network = Recorder()
    teachers = Teachers(batches.geometry, ("a",), ("0",), (network,), (batches.geometry,))
    [(step, target)] = teachers.labelled(batches)
    assert network.seen[0] is step.images and not target.requires_grad
    expected = softmax(step.images.flatten(1)[:, :4], temperature)
    torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_several_teachers_answer_by_the_mean_of_their_logits(tmp_path, loss):
    """Each on the same pixels, normalised as it was trained to see them."""
    batches = stream(noise_folder(tmp_path), epochs=1, batch_size=12, loss=loss, temperature=4.0)
    first, second = batches.geometry, geometry(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    networks = Recorder(1.0), Recorder(-3.0)
    trained = [Teacher(network, name, shape, name) for network, name, shape in zip(networks, "ab", (first, second))]
    teachers = Teachers.of(trained, CPU)
    [(step, target)] = teachers.labelled(batches)

    mean, std, other_mean, other_std = (
        torch.tensor(value, dtype=torch.float64).view(3, 1, 1)
        for value in (first.mean, first.std, second.mean, second.std)
    )
    pixels = step.images.double() * std + mean
    assert -1e-6 < pixels.min() and pixels.max() < 1 + 1e-6
    seen = [(pixels - mean) / std, (pixels - other_mean) / other_std]
    for network, expected in zip(networks, seen):
        torch.testing.assert_close(network.seen[-1].double(), expected, rtol=1e-5, atol=1e-5)
    logits = (seen[0].flatten(1)[:, :4] - 3 * seen[1].flatten(1)[:, :4]) / 2
    expected = logits if loss == "mse" else softmax(logits, 4.0)
    torch.testing.assert_close(target.double(), expected, rtol=1e-4, atol=1e-5)
    assert not target.requires_grad and (teachers.archs, teachers.digests, teachers.name) == (("a", "b"),) * 2 + (
        "a+b",
    )


def test_a_student_of_two_teachers_says_so(place):
    other = torch.load(place.teacher, weights_only=True)
    other["model"]["classifier.bias"] += torch.tensor([0.0, 3.0, -3.0])
    other.update(mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])
    torch.save(other, place / "other.pth")
    curves = {}
    for name, paths in (("one", [place.teacher]), ("two", [place.teacher, place / "other.pth"])):
        place.works("validate", teacher_path=paths, epochs=1, output_dir=place / name)
        [path] = (place / name / "results").glob("*.json")
        stored = json.loads(path.read_text())
        curves[name] = stored["seeds"][0]["curve"]
        assert stored["teacher"] == "+".join(["conv3"] * len(paths)) and len(stored["settings"]["teachers"]) == len(
            paths
        )
    assert curves["one"][0]["loss"] != curves["two"][0]["loss"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(input_size=16), ["input_size", "16", "14"]),
        (dict(num_classes=4, classes=["ant", "moth", "yak", "zebra"]), ["num_classes", "4", "3"]),
        (dict(classes=["moth", "ant", "zebra"]), ["order", "classes"]),
    ],
)
def test_teachers_that_do_not_agree_are_refused(place, changes, words):
    other = torch.load(place.teacher, weights_only=True)
    other.update(changes)
    features = 128 * (other["input_size"] // 8) ** 2  # of a conv3
    other["model"]["classifier.weight"] = torch.zeros(other["num_classes"], features)
    other["model"]["classifier.bias"] = torch.zeros(other["num_classes"])
    torch.save(other, place / "other.pth")
    outcome = place.run("validate", teacher_path=[place.teacher, place / "other.pth"], epochs=1)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert all(word in outcome.err for word in [*words, "other.pth", "teacher.pth"]), outcome.err
    assert not (place / "measured").exists()


# --- weights of images -------------------------------------------------------------------------------------------


def test_an_image_counts_by_its_weight_over_the_batchs_mean():
    student, teacher = draws(4, 5)
    p, q = softmax(teacher), softmax(student)
    weights, order = torch.tensor([1.0, 2.0, 4.0, 9.0, 0.5, 7.0]), torch.tensor([5, 0, 3, 2])
    plain = (p * (p.log() - q.log())).sum(1)
    expected = [plain[i].item() * w / ((7.0 + 1.0 + 9.0 + 4.0) / 4) for i, w in enumerate((7.0, 1.0, 9.0, 4.0))]
    batch = step_of(student.float(), order=order), p.float()
    found = student_losses(protocol(temperature=1.0), weights)(lambda images: images, batch)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_ranks_weigh_by_the_mean_of_the_global_batch(tmp_path):
    """Two processes with parts of one batch of five: the mean of their gradients is that of one process with it all."""
    torch.manual_seed(0)
    images, weights = torch.randn(5, 3, 8, 8), torch.tensor([1.0, 5.0, 2.0, 8.0, 3.0])
    target = torch.randn(5, 4).softmax(1)

    student = small_student().eval()  # BatchNorm would see other batches
    log_q = torch.log_softmax(student(images) / 20, 1)
    plain = (target * (target.log() - log_q)).sum(1)
    (plain * weights / weights.mean()).mean().backward()

    def rank(number):
        dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=number, world_size=2)
        own = distributed.local_batch(range(5))
        copy = small_student().eval()
        batch = step_of(images[own], order=torch.tensor(own), batch_size=5), target[own]
        losses = student_losses(protocol(temperature=20.0), weights)(copy, batch)
        distributed.global_mean(losses, 5).backward()
        gradients = [distributed.all_reduce_sum(weight.grad) / 2 for weight in copy.parameters()]
        if number == 0:
            torch.save(gradients, tmp_path / "gradients.pt")
        dist.destroy_process_group()

    children = []
    for number in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 70
            try:
                rank(number)
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for found, weight in zip(torch.load(tmp_path / "gradients.pt"), student.parameters()):
        torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-8)


def weighing(folder, weights):
    """The folder with these `weights` of its images in their order, None for an image without one."""
    entries = {
        path: {"round": 0} if weights[k] is None else {"weight": weights[k]} for k, path in enumerate(folder.paths)
    }
    (folder.root / "manifest.json").write_text(json.dumps({"method": "weighted", "images": entries}))
    return ImageFolder(folder.root, "set")


def test_weights_come_from_the_sets_manifest(tmp_path):
    folder = noise_folder(tmp_path, 6, 2)
    assert image_weights(folder) is None
    assert image_weights(weighing(folder, [None] * 6)) is None
    folder = weighing(folder, [1, 2.5, 3, 0.25, 5, 6])
    assert image_weights(folder) == [1, 2.5, 3, 0.25, 5, 6]
    assert image_weights(folder.first(2)) == [1, 2.5, 0.25, 5], "those of the images that are taken"


@pytest.mark.parametrize("bad", [None, 0, -1.0, math.inf, math.nan, "2", [1]])
def test_weights_that_cannot_be_are_refused(tmp_path, bad):
    folder = weighing(noise_folder(tmp_path, 6, 2), [1, 2, 3, 4, bad, 6])
    with pytest.raises(UserError, match="manifest.json.*" + folder.paths[4]):
        image_weights(folder)


@pytest.fixture
def weighted(place):
    """The set with weights of its images: those of the class moth count for nearly everything."""
    paths = sorted(path.relative_to(place.init).as_posix() for path in place.init.glob("*/*"))
    entries = {path: {"weight": 1000 if path.startswith("moth") else 0.001} for path in paths}
    (place.init / "manifest.json").write_text(json.dumps({"images": entries}))
    return place


def test_a_student_follows_the_weights_unless_told_otherwise(weighted):
    line = dict(
        epochs=8, batch_size=12, lr=0.02, mix="none", rand_augment="none", protocol="hard", student_arch="conv3"
    )
    said = weighted.works("validate", output_dir=weighted / "on", **line)
    weighted.works("validate", output_dir=weighted / "off", image_weights="off", **line)
    assert "weighted images" in said
    found = {}
    for name in ("on", "off"):
        [path] = (weighted / name / "results").glob("*.json")
        found[name] = json.loads(path.read_text())
    # A third of the test images are moths, and a student that saw nothing else calls everything so.
    assert found["on"]["seeds"][0]["top1"] == pytest.approx(100 / 3)
    assert found["off"]["seeds"][0]["top1"] > 40
    assert found["off"]["settings"]["weights"] is None and max(found["on"]["settings"]["weights"]) == 1000


def test_a_set_with_some_weights_is_refused_before_any_student(weighted):
    entries = json.loads((weighted.init / "manifest.json").read_text())["images"]
    del entries["zebra/zebra3.png"]
    (weighted.init / "manifest.json").write_text(json.dumps({"images": entries}))
    line = dict(syn_dir=[weighted.train, weighted.init], ipc=4, epochs=1)
    outcome = weighted.run("validate", **line)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "zebra/zebra3.png" in outcome.err and "--image-weights off" in outcome.err
    assert not (weighted / "measured").exists()
    weighted.works("validate", image_weights="off", **line)
