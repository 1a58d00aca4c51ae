"""The protocols gvbsm and edc: their published settings, and EDC's students against a plain loop."""

import copy
import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from helpers import CPU
from students import geometry, noise_folder, small_student
from utils.fit.loop import Training
from validate.augment import Augmentation, Views
from validate.optim import learner
from validate.protocols import SetFacts, recipes, resolve
from validate.stream import Stream
from validate.targets import Teachers, student_losses

EPOCHS = 20  # of 3 steps: the rate is halved in the epochs 16, 18 and 19


def published(name, dataset, ipc=10, classes=10, size=32):
    return resolve(recipes(dataset)[name], "resnet18", SetFacts(classes, ipc, classes * ipc, size), 3)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_edcs_students_against_a_plain_loop(tmp_path, dataset):
    """The mean of two teachers' logits, MSE and 0.025 cross-entropy to the class before mixing, an average of 0.99."""
    shape, folder = geometry(), noise_folder(tmp_path)
    settings = {**recipes(dataset)["edc"], "epochs": EPOCHS, "batch_size": 4}
    protocol = resolve(settings, "conv3", SetFacts(4, 3, 12, 8), 1)
    batches = Stream(Views(folder, Augmentation(protocol, shape), 0), protocol, 0, shape, CPU)
    networks = [small_student(seed=seed).eval() for seed in (1, 2)]
    teachers = Teachers(shape, ("a", "b"), ("0", "1"), tuple(map(copy.deepcopy, networks)), (shape, shape))
    student, plain = small_student(), small_student()
    learning = learner(student, protocol, batches.schedule.steps_per_epoch)
    training = Training("student", batches.schedule, CPU, shape)
    training.run(learning, partial(teachers.labelled, batches), student_losses(protocol))

    weights = [[p for p in plain.parameters() if (p.ndim > 1) is big] for big in (True, False)]
    decay = 0.01 if dataset == "cifar10" else 5e-4
    groups = [dict(params=weights[0], weight_decay=decay), dict(params=weights[1], weight_decay=0.0)]
    adamw = dataset == "cifar10"
    optimizer = torch.optim.AdamW(groups, lr=0.001) if adamw else torch.optim.SGD(groups, lr=0.1, momentum=0.875)
    average = None
    for number, step in enumerate(batches.draw(range(EPOCHS))):
        epoch = number // 3
        half_cosine = [0.5 * (1 + math.cos(math.pi * min(epoch, 5 / 6 * EPOCHS) / (2 * EPOCHS)))]
        linear = 1 if epoch <= 5 / 6 * EPOCHS else 1 - epoch / EPOCHS
        rate = (
            0.001 * 0.5 ** ((epoch >= 16) + (epoch >= 18) + (epoch >= 19)) if adamw else 0.1 * half_cosine[0] * linear
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            target = sum(network(step.images) for network in networks) / 2
        answer = plain.train()(step.images)
        loss = mse_loss(answer, target) + 0.025 * cross_entropy(answer, step.labels)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        now = [p.detach().clone() for p in plain.parameters()]
        average = [0.99 * a + 0.01 * p for a, p in zip(average, now)] if average else now
    for found, expected in zip(student.parameters(), plain.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for found, expected in zip(learning.tested.parameters(), average):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for found, expected in zip(learning.tested.buffers(), student.buffers()):
        assert torch.equal(found, expected), "the statistics are the live ones"
    assert any(not torch.equal(a, b) for a, b in zip(learning.tested.parameters(), student.parameters()))


EDC = dict(loss="mse", class_weight=0.025, weight_average=0.99, mix="cutmix", flip=0.5, max_scale=1)
SGD = dict(optimizer="sgd", lr=0.1, weight_decay=5e-4, momentum=0.875)
FACTS = {"cifar10": (10, 32), "cifar100": (100, 32), "tinyimagenet": (200, 64), "imagenet1k": (1000, 224)}
FACTS |= {"imagenette": (10, 224), "imagewoof": (10, 224)}
PUBLISHED = {
    ("edc", "cifar10"): dict(
        epochs=1000, batch_size=25, optimizer="adamw", lr=0.001, weight_decay=0.01, min_scale=0.08, **EDC
    )
    | dict(lr_schedule="steps", lr_steps=(0.8, 0.9, 0.95), lr_factor=0.5, rand_augment="torchvision"),
    ("edc", "cifar100"): dict(epochs=1000, batch_size=50, lr_schedule="half-cosine-linear", min_scale=0.5, **EDC, **SGD)
    | dict(rand_augment="torchvision"),
    ("edc", "tinyimagenet"): dict(epochs=300, batch_size=100, lr_schedule="half-cosine", min_scale=0.5, **EDC, **SGD)
    | dict(rand_augment="torchvision"),
    ("edc", "imagenet1k"): dict(epochs=300, batch_size=100, optimizer="adamw", lr=0.001, weight_decay=0.01, **EDC)
    | dict(lr_schedule="half-cosine", rand_augment="none", min_scale=0.5),
    **{
        ("edc", name): dict(epochs=1000, batch_size=50, optimizer="adamw", lr=0.001, weight_decay=0.01, **EDC)
        | dict(lr_schedule="half-cosine-linear", rand_augment="torchvision", min_scale=0.5)
        for name in ("imagenette", "imagewoof")
    },
    ("gvbsm", "cifar10"): dict(epochs=1000, batch_size=100, optimizer="adamw", lr=0.001, lr_schedule="cosine")
    | dict(loss="mse", class_weight=0.15, weight_average=0, rand_augment="none", min_scale=0.08, mix="cutmix"),
}


@pytest.mark.parametrize("name, dataset", PUBLISHED)
def test_published_settings(name, dataset):
    classes, size = FACTS[dataset]
    found, expected = vars(published(name, dataset, classes=classes, size=size)), PUBLISHED[name, dataset]
    assert {setting: found[setting] for setting in expected} == expected
    assert found["labels"] == "soft" and found["teacher_statistics"] == "running"


def test_one_image_a_class_of_cifar10_comes_in_batches_of_10():
    assert [published("edc", "cifar10", ipc).batch_size for ipc in (1, 10, 50)] == [10, 25, 25]


def test_torchvisions_randaugment_is_a_configuration(place):
    line = dict(rand_augment="torchvision", epochs=1)
    place.works("validate", **line)
    first = {path.name: path.read_text() for path in (place / "measured" / "results").glob("*.json")}
    assert len(first) == 1 and "rand_augment=torchvision" in next(iter(first.values()))
    outcome = place.run("validate", rand_augment="torch")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "torchvision" in outcome.err


@pytest.mark.parametrize("name", ["gvbsm", "edc"])
def test_they_run_on_a_set(place, name):
    out = place.works("validate", protocol=name, epochs=2, teacher_path=[place.teacher] * 2)
    assert "2 epochs of batch" in out
