"""Winograd's convolution is the convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import CPU, few
from utils.nets import winograd
from utils.nets.frozen import frozen
from utils.nets.models import build
from utils.run.device import Runtime


def direct(conv, x, weights):
    """(conv(x), the gradient of (weights * conv(x)).sum() with respect to x) in float64."""
    x = x.double().requires_grad_()
    y = nn.functional.conv2d(x, conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]


@few
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 5),
    count=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_convolution_and_so_is_its_gradient(size, channels, outputs, count, bias, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    x = torch.randn(count, channels, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(count, outputs, *size)
    expected, expected_gradient = direct(conv, x.detach(), weights.double())
    y = winograd.WinogradConv2d(conv)(x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=2e-5)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=2e-5)


def test_its_error_is_small_where_it_is_used():
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    x = torch.randn(2, 256, 8, 8).requires_grad_()
    weights = torch.randn(2, 256, 8, 8)
    expected, expected_gradient = direct(conv, x.detach(), weights.double())
    y = winograd.WinogradConv2d(conv)(x)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    for found, true in (y, expected), (gradient, expected_gradient):
        assert (found.double() - true).norm() < 1e-5 * true.norm()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"padding": 1}, True),
        ({"padding": "same"}, True),
        ({"padding": 1, "stride": 2}, False),
        ({}, False),
        ({"padding": 2, "dilation": 2}, False),
        ({"padding": 1, "groups": 2}, False),
        ({"padding": 1, "padding_mode": "reflect"}, False),
    ],
)
def test_which_convolutions_fit(options, expected):
    assert winograd.fits(nn.Conv2d(256, 256, 3, **options)) is expected


def test_narrow_and_pointwise_convolutions_do_not_fit():
    assert not winograd.fits(nn.Conv2d(256, 64, 3, padding=1)) and not winograd.fits(nn.Conv2d(256, 256, 1))


def test_a_frozen_network_gives_the_same_logits():
    torch.manual_seed(1)
    model = build("resnet18", 5, 16, "cifar").eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        network = frozen(model, CPU)
        # Blocks 3 and 4 of ResNet-18 have three such convolutions each; the fourth of each has stride 2.
        assert sum(isinstance(module, winograd.WinogradConv2d) for module in network.modules()) == 6
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_in_low_precision_the_convolutions_stay():
    network = frozen(build("resnet18", 5, 16, "cifar"), Runtime(torch.device("cpu"), "bf16", "off"))
    assert not any(isinstance(module, winograd.WinogradConv2d) for module in network.modules())
