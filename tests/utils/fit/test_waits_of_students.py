"""Students, tests and features as a GPU needs them: how often the host waits does not grow with the steps."""

import copy

import pytest
import torch

from helpers import CPU, small_net
from students import geometry, noise_folder, small_student, stream
from utils.data.loader import EvalBatches
from utils.fit.evaluate import accuracy
from utils.fit.loop import Training
from utils.nets.class_order import Answers
from utils.nets.features import FeatureReader, extractor
from utils.nets.teacher import Teacher
from validate.targets import Teachers, accumulated, student_losses
from validate.train import train
from waits import Waits


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_of_a_student(tmp_path, weighted, precision):
    counts = []
    for images in (12, 24):
        batches = stream(noise_folder(tmp_path / f"{images}", images), batch_size=4, epochs=1, accumulate=2)
        labeller = Teachers.of([Teacher(small_net(), "net", geometry(), "a" * 64)], CPU)
        drawn = list(labeller.labelled(batches))  # by the host
        runtime = type(CPU)(CPU.device, precision, "off")
        run = Training("student", batches.schedule, runtime, geometry(), parts=accumulated(batches.protocol))
        weights = torch.rand(images) + 0.5 if weighted else None
        with Waits() as waits:
            train(small_student(), lambda start: iter(drawn), batches, run, weights)
        counts.append(len(waits.found))
    assert counts[0] == counts[1], "three steps more"


def test_the_loss_of_a_step(tmp_path):
    batches = stream(noise_folder(tmp_path), batch_size=4, epochs=1)
    labeller = Teachers.of([Teacher(small_net(), "net", geometry(), "a" * 64)], CPU)
    step, _ = next(iter(labeller.labelled(batches)))
    label, losses = labeller.labeller(batches), student_losses(batches.protocol, torch.rand(12))
    with Waits() as waits:
        losses(small_student(), (step, label(step.images))).sum().backward()
    assert waits.found == []


WORK = {
    "accuracy": lambda images, folder: accuracy(small_net(), images, geometry(), CPU),
    "answers": lambda images, folder: Answers.to(images, small_net(), geometry(), CPU),
    "features": lambda images, folder: list(
        FeatureReader(extractor(copy.deepcopy(small_net())), geometry(), CPU, images.size, 0).by_class(folder, "x")
    ),
}


@pytest.mark.parametrize("work", WORK)
def test_batches_that_are_only_looked_at(tmp_path, work):
    folder, counts = noise_folder(tmp_path, 24), []
    for size in (2, 6):
        images = EvalBatches(folder, 8, batch_size=size, workers=0)
        images.size = size
        list(images)  # read by the host
        with Waits() as waits:
            WORK[work](images, folder)
        counts.append(len(waits.found))
    assert counts[0] == counts[1], "three times as many batches"
