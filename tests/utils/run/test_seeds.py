"""Random streams by name: they repeat, are told apart, and leave the global generators as they were."""

import random

import numpy as np
import pytest
import torch

from utils.run.seeds import generator, seeded, stream_seed


def draws():
    return random.random(), float(np.random.rand()), torch.rand(()).item()


def set_generators():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)


def test_seeded_blocks_repeat_and_leave_no_trace():
    set_generators()
    expected = [draws() for _ in range(2)]
    set_generators()
    first = draws()
    with seeded(0, "a"):
        inside = draws()
    assert [first, draws()] == expected
    with seeded(0, "a"):
        assert draws() == inside
    with seeded(0, "b"):
        assert all(x != y for x, y in zip(draws(), inside))


def test_an_error_within_leaves_no_trace():
    set_generators()
    expected = draws()
    set_generators()
    with pytest.raises(ValueError), seeded(5):
        draws()
        raise ValueError
    assert draws() == expected


def test_streams_are_told_apart_by_their_names():
    names = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        ("a", "b", "c"),
        (0, "recover", 1),
        (0, "recover", 2),
        (1, "recover", 1),
        (0, "recover", 11),
        (0, "recover1", 1),
        (0, 1),
        (1, 0),
        (1,),
        (10,),
        (),
    ]
    seeds = [stream_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert [stream_seed(*name) for name in names] == seeds
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_repeat_by_name():
    assert torch.equal(torch.rand(3, generator=generator("a", 1)), torch.rand(3, generator=generator("a", 1)))
    assert not torch.equal(torch.rand(3, generator=generator("a", 1)), torch.rand(3, generator=generator("a", 2)))
