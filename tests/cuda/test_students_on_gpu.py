"""Students on a GPU: as CUDA graphs the same weights, with parts of a batch too; labels that outlive the next graph."""

import copy
import math
from functools import partial

import pytest
import torch

from helpers import small_net
from on_gpu import alone, gpu, needs_gpu
from students import geometry, noise_folder, protocol, small_student
from utils.data.loader import EvalBatches
from utils.fit.evaluate import accuracy
from utils.fit.loop import Training
from utils.nets.teacher import Teacher
from utils.run.device import Runtime
from validate.augment import Augmentation, Views
from validate.label_writer import Writer
from validate.labels import StoredLabels
from validate.stream import Stream
from validate.targets import Teachers, accumulated, hard_labelled, student_losses
from validate.train import train

pytestmark = needs_gpu


def stream(folder, runtime, **changes):
    settings, shape = protocol(**changes), geometry(len(folder.classes))
    return Stream(Views(folder, Augmentation(settings, shape), 0), settings, 0, shape, runtime)


def teachers(runtime, *seeds):
    return Teachers.of([Teacher(small_net(seed=seed), "net", geometry(), str(seed)) for seed in seeds], runtime)


def weights_after(runtime, folder, seeds=(1,), **changes):
    """The losses of the epochs, and a student's weights after three epochs of three steps."""
    batches = stream(folder, runtime, batch_size=4, epochs=3, lr=0.01, **changes)
    source = partial(teachers(runtime, *seeds).labelled, batches) if seeds else partial(hard_labelled, batches)
    student = runtime.place(small_student())
    run = Training("student", batches.schedule, runtime, geometry(), parts=accumulated(batches.protocol))
    found = train(student, source, batches, run)
    return [entry["loss"] for entry in found.curve], [parameter.detach().clone() for parameter in student.parameters()]


CASES = {
    "one teacher": dict(seeds=(1,)),
    "logits of several": dict(seeds=(1, 2), loss="mse"),
    "parts of a batch": dict(seeds=(), labels="hard", accumulate=2),
    "parts by their statistics": dict(seeds=(1, 2), loss="mse", accumulate=2, teacher_statistics="batch"),
}


def compiled(case, folder):
    """In a process of its own, in fp32, where what a graph returns is not copied by a cast."""
    images = noise_folder(folder, 12)
    with gpu("fp32") as runtime:
        (plain, expected), (replayed, found) = (
            weights_after(Runtime(runtime.device, "fp32", how), images, **CASES[case]) for how in ("off", "on")
        )
    assert torch.allclose(torch.tensor(replayed), torch.tensor(plain), rtol=1e-3, atol=1e-5), (replayed, plain)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm() + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_train_as_eager_ones_do(case, tmp_path):
    alone(
        "import pathlib, test_students_on_gpu as t; t.compiled(sys.argv[1], pathlib.Path(sys.argv[2]))", case, tmp_path
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_is_that_of_the_cpu(precision, tmp_path):
    folder = noise_folder(tmp_path, 12)
    expected, _ = weights_after(Runtime(torch.device("cpu"), "fp32", "off"), folder, loss="mse")
    with gpu(precision) as runtime:
        found, _ = weights_after(runtime, folder, loss="mse")
    # The first epoch; later ones add up what rounding did.
    assert found[0] == pytest.approx(expected[0], rel={"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}[precision])


@pytest.mark.parametrize("kind", ["plain", "average", "dsa", "stored", "weights"])
def test_a_step_does_not_wait_for_the_gpu(kind, tmp_path, monkeypatch):
    """From the seventh of 24 steps to the last but one; the losses are read after the last."""
    folder = noise_folder(tmp_path / "images", 24)
    calls = []

    def watched(*given):
        losses = student_losses(*given)

        def asked(forward, batch):
            calls.append(batch)
            torch.cuda.set_sync_debug_mode("error" if 6 < len(calls) < 24 else "default")
            return losses(forward, batch)

        return asked

    monkeypatch.setattr("validate.train.student_losses", watched)
    changes = {"average": dict(weight_average=0.9), "dsa": dict(batch_augment="dsa")}.get(kind, {})
    with gpu("fp16") as runtime:
        batches = stream(folder, runtime, batch_size=4, epochs=4, **changes)
        labelling = teachers(runtime, 1)
        source = partial(labelling.labelled, batches)
        if kind == "stored":
            Writer(str(tmp_path / "labels"), labelling, 3, False).save(batches)
            source = partial(StoredLabels(str(tmp_path / "labels"), 0).labelled, batches)
        given = torch.rand(24, device=runtime.device) + 0.5 if kind == "weights" else None
        run = Training("student", batches.schedule, runtime, geometry())
        try:
            found = train(runtime.place(small_student()), source, batches, run, given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(calls) == 24 and all(math.isfinite(entry["loss"]) for entry in found.curve)


def test_a_test_waits_once(tmp_path):
    folder = noise_folder(tmp_path, 24)
    with gpu() as runtime:
        network = runtime.place(copy.deepcopy(small_net()))
        images = EvalBatches(folder, 8, batch_size=5, workers=0)
        expected = accuracy(copy.deepcopy(small_net()), images, geometry(), Runtime(torch.device("cpu"), "fp32", "off"))
        assert accuracy(network, images, geometry(), runtime) == expected
        assert all(batch.is_pinned() for batch, _ in EvalBatches(folder, 8, batch_size=5, workers=1))
