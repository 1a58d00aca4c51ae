"""How students learn: a few steps of each kind of training against a plain loop, and the learning rates."""

import copy
import json
import math
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import CPU
from students import MEAN, STD, noise_folder, protocol, small_student, stream
from utils.data.loader import EvalBatches
from utils.fit.loop import Training
from utils.run.resume import State
from validate.optim import learner, learning_rate
from validate.targets import Teachers
from validate.train import train

EPOCHS, STEPS = 6, 3  # 12 images in batches of 4
LINE = dict(epochs=EPOCHS, batch_size=4, min_scale=0.5, rand_augment="none", lr=0.02, weight_decay=0.1)


# --- training against a plain loop -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The set to train on, and one to test on, of noise that no student is right or wrong about in the whole."""
    root = tmp_path_factory.mktemp("sets")
    return noise_folder(root / "syn"), noise_folder(root / "val", 120)


def trained(sets, **changes):
    """(what was measured, the trained student, its batches, what the teacher says of each)."""
    batches = stream(sets[0], **{**LINE, **changes})
    teacher = small_student(seed=1).eval()
    teacher[-1].weight.data *= 5
    teachers = Teachers(batches.geometry, ("a",), ("0",), (copy.deepcopy(teacher),), (batches.geometry,))
    test = EvalBatches(sets[1], 8, workers=0)
    training = Training("student", batches.schedule, CPU, batches.geometry, test, EPOCHS)
    student = small_student()
    result = train(student, partial(teachers.labelled, batches), batches, training)
    steps = list(batches.draw(range(EPOCHS)))
    with torch.no_grad():
        return result, student, steps, [teacher(step.images) for step in steps]


def top1(model, folder):
    """Percent of the test images that `model` calls by their class."""
    pixels = np.stack([np.asarray(Image.open(folder.root / path)) for path in folder.paths]) / 255
    with torch.no_grad():
        found = model(torch.tensor((pixels - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)).argmax(1)
    return 100 * (found == torch.tensor(folder.labels)).double().mean().item()


def assert_same(student, plain):
    for (name, found), expected in zip(student.state_dict().items(), plain.state_dict().values()):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")


def assert_measured(result, losses, top1s):
    assert [entry["epoch"] for entry in result.curve] == [1, 2, 3, 4, 5, 6]
    expected = [sum(losses[STEPS * k : STEPS * (k + 1)]) / STEPS for k in range(EPOCHS)]
    assert [entry["loss"] for entry in result.curve] == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert [entry["top1"] for entry in result.curve] == pytest.approx(top1s)
    assert len(set(top1s)) > 3, "these networks are told apart"
    assert (result.top1, result.best_top1, result.top5) == pytest.approx((top1s[-1], max(top1s), 100))


@pytest.mark.parametrize(
    "optimizer, lr_schedule, halves", [("adamw", "half-cosine", 1), ("adamw", "cosine", 2), ("adam", "cosine", 2)]
)
def test_adam_at_a_cosine(sets, optimizer, lr_schedule, halves):
    """AdamW's decay is apart from the moments, Adam's a part of the gradient."""
    apart, within = (0.1, 0.0) if optimizer == "adamw" else (0.0, 1e-4)  # gradients are small at this temperature
    changes = dict(optimizer=optimizer, lr_schedule=lr_schedule, weight_decay=apart + within)
    result, student, steps, said = trained(sets, **changes)
    plain, losses, top1s = small_student(), [], []
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in plain.parameters()]
    for t, (step, logits) in enumerate(zip(steps, said), 1):
        lr = 0.02 * 0.5 * (1 + math.cos(halves * math.pi * ((t - 1) // STEPS) / (2 * EPOCHS)))
        p, log_q = (logits / 20).softmax(1), (plain.train()(step.images) / 20).log_softmax(1)
        losses.append((loss := (p * (p.log() - log_q)).sum() / len(p)).item())
        for w, g, (m, v) in zip(plain.parameters(), torch.autograd.grad(loss, [*plain.parameters()]), moments):
            g = g + within * w.data * (w.ndim > 1)
            m.mul_(0.9).add_(g, alpha=0.1), v.mul_(0.999).add_(g * g, alpha=0.001)
            w.data -= lr * (apart * w.data * (w.ndim > 1) + m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        top1s += [top1(plain.eval(), sets[1])] if t % STEPS == 0 else []
    assert_same(student, plain)
    assert_measured(result, losses, top1s)


def test_sgd_in_steps(sets):
    """The rate falls to a fifth at half of the epochs, and again at five sixths of them."""
    changes = dict(optimizer="sgd", momentum=0.8, lr=0.05, lr_schedule="steps", lr_steps=(0.5, 5 / 6), lr_factor=0.2)
    result, student, steps, said = trained(sets, temperature=2.0, **changes)
    plain, losses, top1s = small_student(), [], []
    velocities = [torch.zeros_like(p) for p in plain.parameters()]
    for t, (step, logits) in enumerate(zip(steps, said), 1):
        lr = 0.05 * [1, 1, 1, 0.2, 0.2, 0.04][(t - 1) // STEPS]
        p, log_q = (logits / 2).softmax(1), (plain.train()(step.images) / 2).log_softmax(1)
        losses.append((loss := (p * (p.log() - log_q)).sum() / len(p)).item())
        for w, g, v in zip(plain.parameters(), torch.autograd.grad(loss, [*plain.parameters()]), velocities):
            v.mul_(0.8).add_(g + 0.1 * w.data * (w.ndim > 1))
            w.data -= lr * v
        top1s += [top1(plain.eval(), sets[1])] if t % STEPS == 0 else []
    assert_same(student, plain)
    assert_measured(result, losses, top1s)


@pytest.mark.parametrize("decay", [0.9, 0.99])
def test_the_average_of_the_weights_is_tested_and_the_student_trained(sets, decay):
    """With the BatchNorm statistics of the student; begun with its weights after the first step."""
    changes = dict(loss="mse", class_weight=0.1, optimizer="sgd", momentum=0.0, lr=0.1, lr_schedule="cosine")
    result, student, steps, said = trained(sets, weight_average=decay, **changes)
    plain, average, losses, top1s, own = small_student(), None, [], [], []
    for t, (step, logits) in enumerate(zip(steps, said), 1):
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * ((t - 1) // STEPS) / EPOCHS))
        answer = plain.train()(step.images)
        share = -answer.log_softmax(1)[range(len(answer)), step.labels]
        losses.append((loss := (((answer - logits) ** 2).mean(1) + 0.1 * share).mean()).item())
        for w, g in zip(plain.parameters(), torch.autograd.grad(loss, [*plain.parameters()])):
            w.data -= lr * (g + 0.1 * w.data * (w.ndim > 1))
        now = [w.data.clone() for w in plain.parameters()]
        average = [decay * a + (1 - decay) * w for a, w in zip(average, now)] if average else now
        tested = copy.deepcopy(plain).eval()
        [w.data.copy_(a) for w, a in zip(tested.parameters(), average)]
        top1s, own = top1s + [top1(tested, sets[1])], own + [top1(plain.eval(), sets[1])]
    assert_same(student, plain)
    assert_measured(result, losses, top1s[2::STEPS])
    assert top1s[2::STEPS] != own[2::STEPS], "the two are told apart"


class Sent(TorchDispatchMode):
    """How often a step copies from one device to another, for which the host waits."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, found)) if torch.is_tensor(leaf)]
        self.count += len({tensor.device for tensor in tensors}) > 1
        return found


def test_the_average_sends_nothing_to_the_device():
    student = small_student().to("meta")
    average = learner(student, protocol(weight_average=0.9), 3).average
    with Sent() as sent:
        average.update_parameters(student)
        average.update_parameters(student)
    assert sent.count == 0
    with sent:
        torch.zeros(1).to("meta")
    assert sent.count == 1, "it would have been seen"


# --- learning rates ----------------------------------------------------------------------------------------------


def rates(lr_schedule, epochs=300, **changes):
    settings = protocol(lr_schedule=lr_schedule, epochs=epochs, **changes)
    return [learning_rate(epoch, settings) for epoch in range(epochs)]


def test_half_a_cosine_ends_at_half():
    """DELT's and RDED's: 0.5 (1 + cos(pi e / (2 E)))."""
    found = rates("half-cosine")
    assert found[0] == 1 and found == sorted(found, reverse=True)
    assert found[150] == pytest.approx((2 + 2**0.5) / 4)
    assert found[299] == pytest.approx(0.5, abs=0.005)


def test_a_cosine_ends_at_0():
    found = rates("cosine")
    assert found[0] == 1 and found == sorted(found, reverse=True)
    assert (found[100], found[150], found[200]) == pytest.approx((0.75, 0.5, 0.25))
    assert 0 < found[299] < 1e-4


def test_half_a_cosine_with_a_linear_end_is_edcs():
    """Its cos2: the half cosine in the first five sixths, then what it had there times (6 E - 6 e) / (6 E)."""
    found = rates("half-cosine-linear", 1000)
    assert found[:834] == pytest.approx(rates("half-cosine", 1000)[:834])
    expected = {833: 0.630, 834: 0.104, 900: 0.063, 999: 0.0006}
    assert {epoch: found[epoch] for epoch in expected} == pytest.approx(expected, abs=5e-4)
    bend = 0.5 * (1 + math.cos(math.pi * 5 / 12))  # 0.6294
    assert found[834:] == pytest.approx([bend * (6 * 1000 - 6 * epoch) / (6 * 1000) for epoch in range(834, 1000)])


@pytest.mark.parametrize("epochs", [10, 300, 400, 1000])
def test_steps_fall_in_the_epochs_that_they_name(epochs):
    """At 0.8, 0.9 and 0.95 of the epochs, whatever rounding says of these shares."""
    found = rates("steps", epochs, lr_steps=(0.8, 0.9, 0.95), lr_factor=0.5)
    expected = [
        0.5 ** ((10 * e >= 8 * epochs) + (10 * e >= 9 * epochs) + (100 * e >= 95 * epochs)) for e in range(epochs)
    ]
    assert found == pytest.approx(expected)


# --- resuming ----------------------------------------------------------------------------------------------------


def measured(place, name):
    [path] = (place / name / "results").glob("*.json")
    return [{**seed, "seconds": 0} for seed in json.loads(path.read_text())["seeds"]]


def broken_off(monkeypatch, after, number):
    """The process gets a signal at the end of a step."""
    save_if_due, seen = State.save_if_due, []

    def signalled(self, content):
        seen.append(1)
        if len(seen) == after and number == signal.SIGTERM:
            signal.raise_signal(number)
        save_if_due(self, content)
        if len(seen) == after and number == signal.SIGKILL:
            signal.raise_signal(number)

    monkeypatch.setattr(State, "save_if_due", signalled)


@pytest.mark.slow
@pytest.mark.parametrize("number, after", [(signal.SIGKILL, 5), (signal.SIGTERM, 3)])
def test_a_student_with_an_average_resumes(place, monkeypatch, number, after):
    """The student itself is far from its average: a resumed one that lost either would be another."""
    line = dict(epochs=4, lr=0.02, evaluations=4, weight_average=0.8, save_every=0)
    place.works("validate", output_dir=place / "whole", **line)
    with monkeypatch.context() as patch:
        broken_off(patch, after, number)
        _, status = os.waitpid(place.fork("validate", **line), 0)
    assert os.waitstatus_to_exitcode(status) == (-9 if number == signal.SIGKILL else 143)
    assert not (place / "measured" / "results.csv").exists()
    place.works("validate", **line)
    assert measured(place, "measured") == measured(place, "whole")
    place.works("validate", output_dir=place / "without", **{**line, "weight_average": 0})
    assert measured(place, "without") != measured(place, "whole")
    assert not list((place / "measured" / "results").glob(".*"))
