"""BatchNorm's statistics before a test: recomputed over further batches, by the weights that are tested."""

import copy
import json
from functools import partial

import pytest
import torch
from torch.nn.functional import batch_norm

from helpers import CPU
from result_files import result
from students import noise_folder, small_student, stream
from utils.data.loader import EvalBatches
from utils.fit.loop import Training
from utils.run import distributed
from validate.stream import Stream
from validate.targets import hard_labelled
from validate.train import recompute_statistics, train

EPOCHS, FURTHER = 3, 2
SETTINGS = dict(batch_size=4, epochs=EPOCHS, labels="hard", rand_augment="none", lr=0.05)


@pytest.fixture
def tested(tmp_path, monkeypatch):
    """Trains a student on 12 images; the network as it was when its last test began, and the batches' stream."""
    folder, seen = noise_folder(tmp_path), []

    def run(**changes):
        batches: Stream = stream(folder, num_classes=4, **{**SETTINGS, **changes})
        training = Training("x", batches.schedule, CPU, batches.geometry, EvalBatches(folder, 8, workers=0), 1)
        monkeypatch.setattr(
            "utils.fit.loop.accuracy", lambda model, *rest: (seen.append(copy.deepcopy(model)), (0, 0))[1]
        )
        train(small_student(), partial(hard_labelled, batches), batches, training)
        return seen[-1], batches

    return run


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_statistics_are_the_means_over_further_batches(tested, average):
    network, batches = tested(bn_epochs=FURTHER, weight_average=average)
    first, second = network[1], network[4]
    found = []
    with torch.no_grad():
        for step in batches.draw(range(EPOCHS, EPOCHS + FURTHER)):
            x = network[0](step.images)
            hidden = batch_norm(x, None, None, first.weight, first.bias, training=True).relu()
            y = network[3](hidden)
            found.append([(z.mean((0, 2, 3)), z.transpose(0, 1).flatten(1).var(1)) for z in (x, y)])
    assert len(found) == FURTHER * 3
    for layer, norm in enumerate((first, second)):
        for kind, running in enumerate((norm.running_mean, norm.running_var)):
            expected = torch.stack([batch[layer][kind] for batch in found]).mean(0)
            torch.testing.assert_close(running, expected, rtol=1e-4, atol=1e-5)
    assert first.momentum == second.momentum == 0.1, "training goes on as before"


def test_each_of_several_processes_sees_whole_batches(tmp_path, monkeypatch):
    """Those of the first are tested, and its part of a batch is not all images."""
    batches = stream(noise_folder(tmp_path), num_classes=4, **SETTINGS, bn_epochs=FURTHER, mix="none")
    alone, second = small_student(), small_student()
    recompute_statistics(batches, alone)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    recompute_statistics(batches, second)
    assert torch.equal(second[1].running_mean, alone[1].running_mean)
    assert torch.equal(second[4].running_var, alone[4].running_var)


def test_training_is_the_same_with_and_without(tested):
    """Only what is tested differs."""
    (one, _), (other, _) = tested(), tested(bn_epochs=1)
    for found, expected in zip(one.parameters(), other.parameters()):
        assert torch.equal(found, expected)
    assert not torch.equal(one[1].running_mean, other[1].running_mean)


@pytest.mark.slow
def test_it_is_a_setting_that_shows_and_dropout_draws_the_same_again(place):
    line = dict(student_arch="timm/mobilenetv3_small_050", bn_epochs=1, epochs=1)
    place.works("validate", **line)
    one = result(place)
    assert one["protocol"] == "delt epochs=1 bn_epochs=1" and one["settings"]["bn_epochs"] == 1
    place.works("validate", output_dir=place / "again", **line)
    again = result(place, "again")
    assert [{**seed, "seconds": 0} for seed in again["seeds"]] == [{**seed, "seconds": 0} for seed in one["seeds"]]
    place.works("validate", output_dir=place / "without", **{**line, "bn_epochs": None})
    assert "bn_epochs" not in json.dumps(result(place, "without")["settings"]), "results of before are found again"
