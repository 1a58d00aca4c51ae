"""The training loop: which epochs are measured."""

import pytest

from utils.fit.loop import evaluated_epochs


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
