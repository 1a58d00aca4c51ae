"""Normalisation: against NumPy, back and forth, and from one teacher's to another's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from utils.data.datasets import DATASETS
from utils.data.geometry import Geometry, GeometryFlags, plain
from utils.run.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)

means = st.tuples(*[st.floats(-0.5, 1.5)] * 3)
stds = st.tuples(*[st.floats(0.05, 2)] * 3)


def geometry(mean=MEAN, std=STD):
    return Geometry(input_size=8, mean=mean, std=std, num_classes=2, classes=("a", "b"), stem="cifar")


def images(seed=0, count=2):
    return torch.randint(256, (count, 3, 4, 5), generator=torch.Generator().manual_seed(seed)).byte()


def by_numpy(pixels, mean, std):
    """(x / 255 - mean) / std in float64."""
    scaled = pixels.numpy().astype(np.float64) / 255
    return (scaled - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]


@few
@given(mean=means, std=stds, seed=st.integers(0, 99), count=st.integers(1, 3))
def test_normalise_is_numpy_s(mean, std, seed, count):
    pixels = images(seed, count)
    found = geometry(mean, std).normalise(pixels, CPU)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), by_numpy(pixels, mean, std), rtol=1e-5, atol=1e-5)


@few
@given(mean=means, std=stds, seed=st.integers(0, 99))
def test_denormalise_gives_the_pixels_back(mean, std, seed):
    pixels, own = images(seed), geometry(mean, std)
    found = own.denormalise(own.normalise(pixels, CPU))
    assert torch.equal((found * 255).round().byte(), pixels)


@few
@given(mean=means, std=stds, source_mean=means, source_std=stds, seed=st.integers(0, 99))
def test_renormalising_is_normalising_directly(mean, std, source_mean, source_std, seed):
    pixels, own, source = images(seed), geometry(mean, std), geometry(source_mean, source_std)
    found = own.renormalise(source.normalise(pixels, CPU), source)
    # A small std enlarges what is rounded away on the way.
    np.testing.assert_allclose(found.numpy(), by_numpy(pixels, mean, std), rtol=1e-4, atol=1e-4)


def test_the_same_normalisation_leaves_the_very_same_tensor():
    normalised = geometry().normalise(images(), CPU)
    same = Geometry(input_size=32, mean=MEAN, std=STD, num_classes=9, classes=None, stem="imagenet")
    assert same.renormalise(normalised, geometry()) is normalised
    assert geometry(std=(0.3, 0.25, 0.21)).renormalise(normalised, geometry()) is not normalised


@few
@given(mean=means, std=stds)
def test_bounds_are_black_and_white(mean, std):
    own = geometry(mean, std)
    low, high = own.bounds(CPU)
    assert low.shape == high.shape == (3, 1, 1) and (low < high).all()
    for bound, colour in ((low, 0), (high, 255)):
        flat = torch.full((1, 3, 1, 1), colour, dtype=torch.uint8)
        torch.testing.assert_close(bound[None], own.normalise(flat, CPU), rtol=1e-5, atol=1e-5)


def test_a_network_can_be_trained_on_what_was_first_normalised_without_gradients():
    own = geometry(mean=(0.11, 0.12, 0.13))  # a normalisation that no other test has used
    with torch.inference_mode():
        own.normalise(images(), CPU)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (own.normalise(images(), CPU) * weight).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("classes, written", [(("a", "b"), ["a", "b"]), (None, None)])
def test_plain_values_are_what_json_has(classes, written):
    own = Geometry(input_size=8, mean=MEAN, std=STD, num_classes=2, classes=classes, stem="cifar")
    assert plain(own) == {
        "input_size": 8,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.25, 0.2],
        "num_classes": 2,
        "classes": written,
        "stem": "cifar",
    }


@pytest.mark.parametrize(
    "name, mean, std",
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # of the training images
        ("cifar100", (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        *((name, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for name in ("imagenet1k", "imagenet100", "imagenette")),
        *((name, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) for name in ("imagewoof", "tinyimagenet")),
    ],
)
def test_the_normalisation_of_a_data_set_is_the_fields(name, mean, std):
    assert (DATASETS[name].mean, DATASETS[name].std) == (mean, std)


@pytest.mark.parametrize(
    "mean, std",
    [
        (None, None),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # Inception, timm: -1 to 1
        ((0, 0, 0), (1, 1, 1)),  # none
        ((0.5, 0.5, 0.5), (2, 2, 2)),  # smaller still
        ((0.406, 0.456, 0.485), (1 / 255, 1 / 255, 1 / 255)),  # Caffe's, as it has to be said
        ((1.0000001, 0.5, -1e-8), (0.2, 0.2, 0.2)),  # computed, of channels that are white and black
        ((1, 1, 1), None),
        (None, (0.25, 0.25, 0.25)),
    ],
)
def test_a_normalisation_of_pixels_from_0_to_1(mean, std):
    assert GeometryFlags(mean=mean, std=std).mean == mean


@pytest.mark.parametrize(
    "mean, std, words",
    [
        # mmcv's, Caffe's, TensorFlow's, and a std alone
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"),
        ((123.675, 116.28, 103.53), (1, 1, 1), "--mean 0.485 0.456 0.406 --std 0.00392157 0.00392157 0.00392157"),
        ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"),
        ((127.5, 127.5, 127.5), (0.5, 0.5, 0.5), "--mean 0.5 0.5 0.5"),
        ((0, 0, 127.5), None, "--mean 0 0 0.5"),
        ((0, 0, 0), (255, 255, 255), "--std 1 1 1"),
        (None, (51, 51, 51), "--std 0.2 0.2 0.2"),
        ((0.5, -0.5, 0.5), (0.5, 0.5, 0.5), "from 0 to 1"),  # divided by 255 it is no better
    ],
)
def test_another_normalisation_is_refused_with_what_would_work(mean, std, words):
    with pytest.raises(UserError) as error:
        GeometryFlags(mean=mean, std=std)
    assert str(error.value).endswith(words) and "\n" not in str(error.value)
