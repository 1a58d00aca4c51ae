"""The training loop: it is a plain loop, whose losses are recorded, and whose epochs are measured in time."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from helpers import CPU
from utils.data.loader import BatchSchedule
from utils.fit.loop import Learner, Training, evaluated_epochs
from utils.run import distributed
from utils.run.errors import UserError

SCHEDULE = BatchSchedule(images=10, batch_size=4, epochs=3)  # 4, 4 and 2 images an epoch


def batches(start=0):
    stream = torch.Generator().manual_seed(0)
    made = []
    for number in range(SCHEDULE.steps):
        count = SCHEDULE.size(number)
        made.append((torch.randn(count, 6, generator=stream), torch.randint(3, (count,), generator=stream)))
    return iter(made[start:])


def losses(forward, batch):
    inputs, labels = batch
    return cross_entropy(forward(inputs), labels, reduction="none")


def model():
    torch.manual_seed(1)
    return nn.Linear(6, 3)


def learner(network, lr=0.5):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def training():
    return Training("a model", SCHEDULE, CPU, geometry=None)


def test_it_trains_as_a_plain_loop_does():
    expected, means = model(), []
    optimizer, scheduler = learner(expected)
    for inputs, labels in batches():
        loss = cross_entropy(expected(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        means.append(loss.item())
    found = model()
    history = training().run(Learner(found, *learner(found)), batches, losses)
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)
    assert [entry["epoch"] for entry in history.epochs] == [1, 2, 3]
    for epoch, entry in enumerate(history.epochs):
        assert entry["loss"] == pytest.approx(sum(means[3 * epoch : 3 * epoch + 3]) / 3, rel=1e-5)


def test_epochs_of_one_step_are_noted_without_a_wait_for_each(monkeypatch):
    """A GPU would stand still while the host reads a loss: it is read after 25 steps, and at the end."""
    read, reduce = [], distributed.all_reduce_sum
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda values: read.append(len(values)) or reduce(values))
    data, found, seen = next(batches()), model(), []

    def remembering(forward, batch):
        seen.append(value := losses(forward, batch))
        return value

    run = Training("a model", BatchSchedule(images=4, batch_size=4, epochs=60), CPU, geometry=None)
    history = run.run(Learner(found, *learner(found)), lambda start: iter([data] * (60 - start)), remembering)
    assert read == [26, 26, 11], "each with the epoch under way"
    assert [entry["epoch"] for entry in history.epochs] == [*range(1, 61)]
    assert [entry["loss"] for entry in history.epochs] == pytest.approx([value.mean().item() for value in seen])


def test_an_average_follows_every_step():
    found = model()
    average = AveragedModel(found, avg_fn=get_ema_avg_fn(0.8))
    seen = []

    def remembering(forward, batch):
        seen.append(found.weight.detach().clone())  # before the step
        return losses(forward, batch)

    training().run(Learner(found, *learner(found), average), batches, remembering)
    expected = seen[1]  # the first update takes the weights as they are
    for weight in [*seen[2:], found.weight.detach()]:
        expected = 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(average.module.weight, expected)


def test_a_loss_that_is_no_number_says_where():
    network = model()
    with pytest.raises(UserError, match="a model: loss is nan in epoch 1, step 3.*--lr"):
        training().run(Learner(network, *learner(network, float("nan"))), batches, losses)


@pytest.mark.parametrize(
    "epochs, evaluations, expected",
    [
        (300, 5, {60, 120, 180, 240, 300}),
        (1, 5, {1}),
        (3, 5, {1, 2, 3}),
        (10, 1, {10}),
        (4, 4, {1, 2, 3, 4}),
        (10, 0, set()),
    ],
)
def test_evaluated_epochs(epochs, evaluations, expected):
    assert evaluated_epochs(epochs, evaluations) == expected


def test_the_last_epoch_is_always_evaluated():
    for epochs in range(1, 40):
        for evaluations in range(1, 12):
            found = evaluated_epochs(epochs, evaluations)
            assert max(found) == epochs and min(found) >= 1 and len(found) <= evaluations
