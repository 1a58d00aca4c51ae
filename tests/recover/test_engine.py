"""The loop over one unit: who moves when, by what optimiser, and what the objective is called with."""

import math
from dataclasses import replace

import pytest
import torch

from helpers import CPU, Dying, Interrupted, recipe, small_net
from recover.earlylate import EarlyLate
from recover.engine import Engine, Recovery, Start
from recover.objectives.base import Objective
from recover.objectives.batchnorm import BatchNormMatching
from utils.data.geometry import Geometry
from utils.nets.teacher import Teacher
from utils.run.errors import UserError
from utils.run.resume import State

SIZE = 6


def geometry(mean, std):
    return Geometry(SIZE, mean, std, num_classes=4, classes=None, stem="cifar")


NARROW = geometry((0.5, 0.5, 0.5), (1 / 4, 1 / 3, 1 / 2))
LOW, HIGH = torch.tensor([-2.0, -1.5, -1.0]).view(3, 1, 1), torch.tensor([2.0, 1.5, 1.0]).view(3, 1, 1)
WIDE = geometry((0.5,) * 3, (1 / 200,) * 3)  # from -100 to 100


def make_engine(objective, space=NARROW, **changed):
    settings = recipe(**{"iterations": 12, "round_iterations": 3, **changed})
    return Engine(objective, space, EarlyLate(4, **settings.schedule), CPU, settings, steps=12)


def start(count, seed=0, size=SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 0.5


class Toy(Objective):
    """A loss given as a function of the batch, and a record of what it was called with."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.batches = loss, []

    def forward(self, batch):
        self.batches.append(batch)
        return self.loss(batch)

    @property
    def labels(self):
        return [batch.labels.tolist() for batch in self.batches]


def quadratic(target=3.0):
    """Half the squared distance to `target`."""
    return Toy(lambda batch: 0.5 * (batch.images - target).square().sum())


def recovery(starts, objective, space=NARROW, stream=(0, "recover", 0), images=None, **changed):
    images = start(len(starts)) if images is None else images
    return Recovery(make_engine(objective, space, **changed), Start(images, torch.arange(len(starts)), starts), *stream)


def quiet(*_):
    pass


def test_an_image_is_untouched_until_its_round():
    starts = [6, 0, 3, 0, 9, 3]  # as in a unit of several classes
    # Beyond the bounds on purpose: clamping would touch it as well.
    images = start(len(starts)) * 8
    loop = recovery(starts, quadratic(), images=images.clone())
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
    objective = quadratic()
    recovery([0, 0, 3, 3, 6, 9], objective).run(quiet)
    assert objective.labels == [[0, 1]] * 3 + [[0, 1, 2, 3]] * 3 + [[0, 1, 2, 3, 4]] * 3 + [[0, 1, 2, 3, 4, 5]] * 3
    assert [len(batch.images) for batch in objective.batches] == [2] * 3 + [4] * 3 + [5] * 3 + [6] * 3


def test_without_rounds_all_start_at_once():
    objective = quadratic()
    recovery([0] * 4, objective, round_iterations=0).run(quiet)
    assert objective.labels == [[0, 1, 2, 3]] * 12


def test_the_objective_gets_members_and_the_iteration():
    objective = quadratic()
    recovery([6, 0, 3, 0], objective).run(quiet)
    active = [{1, 3}] * 3 + [{1, 2, 3}] * 3 + [{0, 1, 2, 3}] * 6
    assert [set(batch.members.tolist()) for batch in objective.batches] == active
    # The test's labels are the members' numbers.
    assert all(torch.equal(batch.members, batch.labels) for batch in objective.batches)
    assert [batch.iteration.item() for batch in objective.batches] == list(range(12))


def test_the_objective_gets_pixels_from_0_to_1():
    objective = quadratic()
    dark, bright = torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)
    pixels = torch.stack([dark, bright, 0.25 * bright])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (NARROW.mean, NARROW.std))
    recovery([0, 0, 0], objective, images=(pixels - mean) / std, lr=0.0).run(quiet)
    assert len(objective.batches) == 12
    for batch in objective.batches:  # crops and flips of one colour are that colour
        torch.testing.assert_close(batch.pixels, pixels, rtol=0, atol=1e-6)


def test_reported_updates_are_the_images_touched():
    # 8 rounds of 5 iterations over 8 images: 56.25 % of 8 * 40 updates, reported at 20 and 40.
    reports = []
    loop = recovery([5 * k for k in range(8)], quadratic(), iterations=40, round_iterations=5)
    loop.run(lambda updates, iteration, loss: reports.append((updates, iteration)))
    assert reports == [(5 * (1 + 2 + 3 + 4), 20), (5 * (5 + 6 + 7 + 8), 40)]
    assert sum(updates for updates, _ in reports) == 0.5625 * 8 * 40


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
    result = recovery(starts, quadratic(), WIDE, images=images.clone(), min_crop=1.0).run(quiet)
    for index, first in enumerate(starts):
        expected = adam(images[index].double(), lambda image: image - 3.0, first, 12, 0.25)
        torch.testing.assert_close(result[index].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_view_is_what_the_objective_sees():
    objective = Toy(lambda batch: batch.images.sum())
    images = start(2)
    loop = recovery([0, 0], objective, images=images.clone(), min_crop=0.3, milestone=0.0, jitter=2, lr=0.0)
    loop.run(quiet)
    for batch, view in zip(objective.batches, loop.views, strict=True):
        rows, columns = view.matrices(SIZE, torch.device("cpu"))
        torch.testing.assert_close(batch.images, rows @ images @ columns)
    assert len({view.crop for view in loop.views}) > 6, "a new crop each step"


@pytest.mark.parametrize("starts", [[0, 0], [20, 30]])
def test_the_crops_of_a_unit_follow_the_curriculum(starts):
    """By the iteration of the whole run, also in a unit whose images join late: from the whole image on."""
    wide = replace(WIDE, input_size=32)
    settings = dict(iterations=40, round_iterations=10, min_crop=0.08, milestone=1.0, curriculum="cosine")
    loop = recovery(starts, quadratic(), wide, images=start(2, size=32), **settings)
    shares = [view.crop[2] * view.crop[3] / 32**2 for view in loop.views]
    least = [0.08 + 0.92 * (1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)]
    assert shares[0] == 1 and len(shares) == 40
    # Whole pixels and bounded aspect ratios may cost a little of an area.
    assert all(share > 0.85 * smallest for share, smallest in zip(shares, least))
    assert sum(shares[:10]) > 1.5 * sum(shares[-10:]) and min(shares[-10:]) < 0.3


def test_the_crop_of_an_iteration_is_by_that_iteration():
    """A step at half of the run: the first crop of the second half is the first that may be small."""
    settings = dict(iterations=12, min_crop=0.08, milestone=0.5, curriculum="step")
    loop = recovery([0, 0], quadratic(), replace(WIDE, input_size=32), images=start(2, size=32), **settings)
    is_whole = [view.crop[2:] == (32, 32) for view in loop.views]
    assert is_whole == [True] * 6 + [False] * 6


@pytest.mark.parametrize("learn, rounding", [("image", 0), ("difference", 1e-6)])
def test_pixels_stay_within_bounds(learn, rounding):
    loop = recovery([0, 0, 3], quadratic(50.0), lr=1.0, learn=learn)
    for _ in range(12):
        loop.step()
        for image in loop.images():
            assert (image >= LOW - rounding).all() and (image <= HIGH + rounding).all()
    bound = HIGH.expand(3, SIZE, SIZE)
    torch.testing.assert_close(
        loop.images()[0], bound, rtol=0, atol=rounding, msg="pushed by the target, they lie there"
    )


def with_network(starts, stream, **changed):
    """A unit with a network in its objective."""
    teacher = Teacher(small_net(), "net", NARROW, "0" * 64)
    engine = make_engine(BatchNormMatching(teacher, 0.05, 10.0), **changed)
    return Recovery(engine, Start(start(4, size=8), torch.arange(4), starts), *stream)


def test_same_stream_same_bytes():
    def result(*stream):
        return with_network([0, 0, 4, 8], stream, jitter=1).run(quiet)

    first = result(0, "recover", 1)
    torch.rand(3)
    assert torch.equal(result(0, "recover", 1), first)
    for other in (0, "recover", 2), (1, "recover", 1):
        assert not torch.equal(result(*other), first)


def test_the_loss_of_a_network_falls():
    loop = with_network([0] * 4, (0,), min_crop=1.0)
    losses = [loop.step().item() for _ in range(12)]
    assert losses[-1] < 0.85 * losses[0]


def test_images_come_back_in_the_order_given():
    starts = [6, 0, 9, 0, 3, 6]
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE).contiguous()
    objective = quadratic()
    loop = recovery(starts, objective, WIDE, images=images.clone())
    assert torch.equal(loop.images(), images)
    # A rate this small moves nothing by more than 12 * 1e-4.
    result = recovery(starts, objective, WIDE, images=images.clone(), lr=1e-4).run(quiet)
    torch.testing.assert_close(result, images, rtol=0, atol=2e-3)
    assert sorted(objective.labels[-1]) == list(range(6))


def test_labels_stay_with_their_images():
    # The loss pulls image k to k: whichever gets another's label ends elsewhere.
    objective = Toy(lambda batch: 0.5 * (batch.images - batch.labels.view(-1, 1, 1, 1)).square().sum())
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE).contiguous()
    result = recovery([6, 0, 9, 0, 3, 6], objective, WIDE, images=images.clone()).run(quiet)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-5)


def test_originals_stay_with_their_images():
    # As above: each image is pulled to its own original, whatever round it joins in.
    objective = Toy(lambda batch: 0.5 * (batch.images - batch.originals[:, 0]).square().sum())
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, SIZE, SIZE).contiguous()
    unit = Start(images, torch.arange(6), [6, 0, 9, 0, 3, 6], images[:, None].clone())
    result = Recovery(make_engine(objective, WIDE), unit, 0, "recover", 0).run(quiet)
    torch.testing.assert_close(result, images, rtol=0, atol=1e-5)


def test_the_given_images_are_left_alone():
    images = start(2)
    before = images.clone()
    recovery([0, 3], quadratic(), images=images).run(quiet)
    assert torch.equal(images, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(bad):
    with pytest.raises(UserError, match="loss is .*--lr"):
        recovery([0, 3], Toy(lambda batch: batch.images.sum() + bad)).run(quiet)


@pytest.mark.parametrize("minutes", [0, 60], ids=["saved", "not saved"])
def test_pixels_that_the_last_update_makes_nan_are_an_error_and_no_state(tmp_path, minutes):
    """Its loss is 0, and the slope of a root at 0 is infinite."""

    def loss(batch):
        away = batch.images - batch.images.detach()
        return away.abs().sqrt().sum() if len(toy.batches) == 12 else away.sum()

    toy = Toy(loss)
    state = State(tmp_path / "unit.state", {}, minutes)
    with pytest.raises(UserError, match="a pixel is NaN.* iteration 12 .*smaller --lr"):
        recovery([0, 3], toy).run(quiet, state)
    saved = state.load()
    assert saved is None or saved["iteration"] == 11


@pytest.mark.parametrize("steps", [1, 4, 11])
def test_a_unit_resumes_from_its_saved_state(tmp_path, steps):
    """Saved after each step, in the first round or a later one; what starts anew computes the rest."""
    whole = with_network([0, 0, 3, 9], (0,), jitter=1).run(quiet)
    with pytest.raises(Interrupted):
        with_network([0, 0, 3, 9], (0,), jitter=1).run(quiet, Dying(tmp_path / "unit.state", steps))
    resumed = with_network([0, 0, 3, 9], (0,), jitter=1)
    assert torch.equal(resumed.run(quiet, State(tmp_path / "unit.state", {}, minutes=0)), whole)
