"""Differentiable augmentation, against loops over pixels in double precision."""

import pytest
import torch

from plain_augmentation import by_hand
from utils.data import dsa
from utils.data.dsa import KINDS, draw, one_of
from waits import Waits

DRAWS = torch.tensor([[0.1, 0.9, 0.4], [0.99, 0.2, 0.0], [0.5, 0.5, 0.75]], dtype=torch.float64)


def images(size=9, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_by_hand(kind, size):
    batch = images(size)
    expected = torch.stack([by_hand(kind, image, own) for image, own in zip(batch, DRAWS)])
    torch.testing.assert_close(KINDS[kind](batch, DRAWS), expected, rtol=1e-9, atol=1e-9)
    assert (expected - batch).abs().max() > 0.1


@pytest.mark.parametrize("kind", list(KINDS))
def test_images_may_share_one_draw(kind):
    batch = images()
    torch.testing.assert_close(KINDS[kind](batch, DRAWS[:1]), KINDS[kind](batch, DRAWS[:1].expand(3, 3)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_has_a_gradient(kind):
    batch = images(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: KINDS[kind](x, DRAWS[:1]), (batch,))


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_of_a_crop_scatters_nothing(shared):
    """As a GPU sums in a fixed order it would be slow; the pixels that come back are those that were shown."""
    batch, draws = images().requires_grad_(), DRAWS[:1] if shared else DRAWS
    found = dsa.crop(batch, draws)
    with Waits() as waits:
        gradient = torch.autograd.grad(found.sum(), batch)[0]
    assert waits.called and not [name for name in waits.called if "scatter" in name or "index_put" in name]
    shown = torch.stack([torch.isin(image, view) for image, view in zip(batch, found)])
    assert torch.equal(gradient, shown.to(gradient.dtype))


@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_extremes_stay_in_bounds(kind, value):
    found = KINDS[kind](images().float(), torch.full((1, 3), value))
    assert found.shape == (3, 3, 9, 9) and found.isfinite().all()


@pytest.mark.parametrize("kind", list(KINDS))
def test_places_are_as_exact_beside_a_network_in_bf16(kind):
    batch, draws = images(64).float(), DRAWS.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = KINDS[kind](batch, draws)
    assert torch.equal(found, KINDS[kind](batch, draws))


def test_crops_shift_by_an_eighth_both_ways():
    row = torch.arange(1.0, 17).view(1, 1, 1, 16).expand(1, 3, 16, 16)
    shifts = {dsa.crop(row, torch.tensor([[0.5, k / 100, 0]]))[0, 0, 8, 8].item() - 9 for k in range(100)}
    assert shifts == {-2, -1, 0, 1, 2}


def test_one_of_several_is_chosen_on_the_device():
    batch, kinds = images(), ("crop", "cutout", "flip")
    for number, kind in enumerate(kinds):
        assert torch.equal(one_of(kinds, batch, torch.tensor(number), DRAWS[:1]), KINDS[kind](batch, DRAWS[:1]))


def test_a_batch_has_one_kind_and_each_image_its_own_draws():
    found = [draw(5, "test", step) for step in range(60)]
    assert {kind for kind, _ in found} == set(KINDS)
    draws = torch.stack([numbers for _, numbers in found])
    assert draws.shape == (60, 5, 3) and len(draws.unique()) == draws.numel()
    kind, numbers = draw(5, "test", 3)
    assert kind == found[3][0] and torch.equal(numbers, found[3][1])
