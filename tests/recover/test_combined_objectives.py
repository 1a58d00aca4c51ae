"""Objectives put together: the mean of several and turns of several, in whatever depth."""

import torch

from recover.objectives.base import Batch, InTurn, Mean, Objective
from utils.data.geometry import Geometry

GEOMETRY = Geometry(input_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=2, classes=None, stem="cifar")


class Number(Objective):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, batch):
        return batch.images.sum() * 0 + self.value


class Phases(Objective):
    """One number before an iteration, another one from there on."""

    def __init__(self, border, *values):
        super().__init__()
        self.border, self.parts = border, torch.nn.ModuleList(map(Number, values))

    def at(self, iteration):
        return self.parts[iteration >= self.border]


def values(objective, iterations):
    batch = Batch(torch.ones(1, 3, 8, 8), GEOMETRY, torch.zeros(1).long(), torch.zeros(1).long(), torch.tensor(0))
    return [objective.at(iteration)(batch).item() for iteration in iterations]


def test_a_mean_of_turns_takes_each_terms_turn():
    objective = Mean([InTurn([Number(1), Number(2)]), Number(10)])
    assert values(objective, range(4)) == [5.5, 6, 5.5, 6]


def test_a_mean_of_phases_and_turns():
    objective = Mean([Phases(2, 0, 100), InTurn([Number(1), Number(2), Number(3)])])
    assert values(objective, range(6)) == [0.5, 1, 51.5, 50.5, 51, 51.5]


def test_turns_of_means_and_of_phases():
    objective = InTurn([Mean([Number(1), Phases(4, 3, 5)]), Phases(3, 7, 9)])
    assert values(objective, range(6)) == [2, 7, 2, 9, 3, 9]


def test_an_objective_without_turns_is_itself_in_every_iteration():
    objective = Mean([Number(1), Number(2)])
    assert objective.at(0) is objective.at(7) is objective


def test_as_many_objects_as_there_are_losses():
    """Each is compiled once."""
    objective = Mean([InTurn([Number(1), Number(2)]), InTurn([Number(1), Number(2), Number(3)])])
    assert len({id(objective.at(iteration)) for iteration in range(60)}) == 6
