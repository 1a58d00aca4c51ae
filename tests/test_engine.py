"""The loop over one unit: who moves when, and by what optimiser."""
import math

import pytest
import torch

from helpers import CPU, small_net
from recover.engine import Recovery, Settings, make_objective
from utils.files import UserError

SIZE = 6
BOUNDS = (torch.tensor([-2.0, -1.5, -1.0]), torch.tensor([2.0, 1.5, 1.0]))
WIDE = (torch.full((3,), -100.0), torch.full((3,), 100.0))


def settings(**changed):
    return Settings(**{**dict(iterations=12, round_iterations=3, lr=0.25, r_bn=0.05, first_bn_multiplier=10.0, jitter=0,
                              curriculum="cosine", milestone=1.0, min_crop=0.08), **changed})


def start(count, seed=0, size=SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 0.5


class Quadratic:
    """Half the squared distance to `target`, and a record of the labels of each batch."""

    def __init__(self, target=3.0):
        self.target, self.batches = target, []

    def __call__(self, images, labels):
        self.batches.append(labels.tolist())
        assert len(images) == len(labels)
        return 0.5 * (images - self.target).square().sum()


def recovery(starts, objective, bounds=BOUNDS, stream=(0, "recover", 0), images=None, **changed):
    images = start(len(starts)) if images is None else images
    return Recovery(images, torch.arange(len(starts)), starts, settings(**changed), objective, bounds, CPU, *stream)


def quiet(*_):
    pass


def test_an_image_is_untouched_until_its_round():
    starts = [6, 0, 3, 0, 9, 3]  # as in a unit of several classes
    # Beyond the bounds on purpose: clamping would touch it as well.
    images = start(len(starts)) * 8
    loop = recovery(starts, Quadratic(), images=images.clone())
    for iteration in range(12):
        before = loop.images()
        loop.step()
        after = loop.images()
        for index, first in enumerate(starts):
            if iteration < first:
                assert torch.equal(after[index], images[index]), (iteration, index)
            else:
                assert not torch.equal(after[index], before[index]), (iteration, index)


def test_the_batch_holds_the_active_images_alone():
    objective = Quadratic()
    recovery([0, 0, 3, 3, 6, 9], objective).run(quiet)
    assert objective.batches == [[0, 1]] * 3 + [[0, 1, 2, 3]] * 3 + [[0, 1, 2, 3, 4]] * 3 + [[0, 1, 2, 3, 4, 5]] * 3


def test_without_rounds_all_start_at_once():
    objective = Quadratic()
    recovery([0] * 4, objective, round_iterations=0).run(quiet)
    assert objective.batches == [[0, 1, 2, 3]] * 12


def test_reported_updates_are_the_images_touched():
    # 8 rounds of 5 iterations over 8 images: 56.25 % of 8 * 40 updates, told at 20 and 40.
    told = []
    loop = recovery([5 * k for k in range(8)], Quadratic(), iterations=40, round_iterations=5)
    loop.run(lambda updates, iteration, loss: told.append((updates, iteration)))
    assert told == [(5 * (1 + 2 + 3 + 4), 20), (5 * (5 + 6 + 7 + 8), 40)]
    assert sum(updates for updates, _ in told) == 0.5625 * 8 * 40


def adam(image, gradient_of, first, iterations, lr):
    """Adam that begins at iteration `first`, moments and bias correction too; the rate is a cosine of the whole."""
    momentum, squares = torch.zeros_like(image), torch.zeros_like(image)
    for step, iteration in enumerate(range(first, iterations), start=1):
        gradient = gradient_of(image)
        momentum = 0.5 * momentum + 0.5 * gradient
        squares = 0.9 * squares + 0.1 * gradient**2
        rate = lr * (1 + math.cos(math.pi * iteration / iterations)) / 2
        image = image - rate * (momentum / (1 - 0.5**step)) / ((squares / (1 - 0.9**step)).sqrt() + 1e-8)
    return image


@pytest.mark.parametrize("starts", [[0, 0, 3, 3, 6, 9], [0, 6], [0, 0]])
def test_each_group_follows_its_own_adam(starts):
    # The crop is the whole image, and a flip does not change the gradient where the target is one value.
    images = start(len(starts))
    result = recovery(starts, Quadratic(), WIDE, images=images.clone(), min_crop=1.0).run(quiet)
    for index, first in enumerate(starts):
        expected = adam(images[index].double(), lambda image: image - 3.0, first, 12, 0.25)
        torch.testing.assert_close(result[index].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_view_is_what_the_objective_sees():
    seen = []

    def objective(images, labels):
        seen.append(images.detach().clone())
        return images.sum()

    images = start(2)
    loop = recovery([0, 0], objective, images=images.clone(), min_crop=0.3, milestone=0.0, jitter=2, lr=0.0)
    loop.run(quiet)
    assert all(batch.shape == images.shape for batch in seen)
    for batch, view in zip(seen, loop.views, strict=True):
        rows, columns = view.matrices(SIZE, torch.device("cpu"))
        torch.testing.assert_close(batch, rows @ images @ columns)
    assert len({view.crop for view in loop.views}) > 6, "a new crop each step"


def test_pixels_stay_within_bounds():
    low, high = (bound.view(3, 1, 1) for bound in BOUNDS)
    loop = recovery([0, 0, 3], Quadratic(50.0), lr=1.0)
    for _ in range(12):
        loop.step()
        for image in loop.images()[:2]:
            assert (image >= low).all() and (image <= high).all()
    assert torch.equal(loop.images()[0], high.expand(3, SIZE, SIZE)), "pushed by the target, they lie on the bound"


def real(starts, stream, **changed):
    """A unit with a network for its objective."""
    objective = make_objective(small_net(), settings(**changed), CPU, 12)
    return Recovery(start(4, size=8), torch.arange(4), starts, settings(**changed), objective, BOUNDS, CPU, *stream)


def test_same_stream_same_bytes():
    def result(*stream):
        return real([0, 0, 4, 8], stream, jitter=1).run(quiet)

    first = result(0, "recover", 1)
    torch.rand(3)
    assert torch.equal(result(0, "recover", 1), first)
    for other in (0, "recover", 2), (1, "recover", 1):
        assert not torch.equal(result(*other), first)


def test_the_real_objective_falls():
    loop = real([0] * 4, (0,), min_crop=1.0)
    losses = [loop.step().item() for _ in range(12)]
    assert losses[-1] < 0.85 * losses[0]


def test_images_come_back_in_the_order_given():
    starts = [6, 0, 9, 0, 3, 6]
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE).contiguous()
    objective = Quadratic()
    loop = recovery(starts, objective, WIDE, images=images.clone())
    assert torch.equal(loop.images(), images)
    # A rate this small moves nothing by more than 12 * 1e-4.
    result = recovery(starts, objective, WIDE, images=images.clone(), lr=1e-4).run(quiet)
    torch.testing.assert_close(result, images, rtol=0, atol=2e-3)
    assert sorted(objective.batches[-1]) == list(range(6))


def test_labels_stay_with_their_images():
    # The loss pulls image k to k: whoever gets another's label ends elsewhere.
    def objective(images, labels):
        return 0.5 * (images - labels.view(-1, 1, 1, 1)).square().sum()

    starts = [6, 0, 9, 0, 3, 6]
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE).contiguous()
    result = recovery(starts, objective, WIDE, images=images.clone()).run(quiet)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-5)


def test_the_given_images_are_left_alone():
    images = start(2)
    before = images.clone()
    recovery([0, 3], Quadratic(), images=images).run(quiet)
    assert torch.equal(images, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(bad):
    with pytest.raises(UserError, match="loss is .*--lr"):
        recovery([0, 3], lambda images, labels: images.sum() + bad).run(quiet)
