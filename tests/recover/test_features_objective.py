"""CIM: features of enlarged tiles against those of their originals, by a slow computation in float64."""

import pytest
import torch

from helpers import small_net
from plain_augmentation import by_hand
from recover.methods import METHODS
from recover.objectives.base import Batch, combined
from recover.objectives.features import FeatureMatching, build, enlarged_tiles
from recover.settings import Settings
from utils.data.geometry import Geometry
from utils.nets.teacher import Teacher
from utils.run.errors import UserError

KINDS = ("crop", "cutout", "flip")
STEPS = 12


def geometry(mean, std, size=8):
    return Geometry(size, mean, std, num_classes=4, classes=None, stem="cifar")


FIRST = geometry((0.4, 0.5, 0.6), (0.3, 0.25, 0.2))
OTHER = geometry((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def teacher(seed=0, shape=FIRST):
    return Teacher(small_net(seed=seed).double(), "small", shape, f"sha{seed}")


def objective(kinds=KINDS, seed=0, shape=FIRST, unit=0):
    found = FeatureMatching(teacher(seed, shape), kinds, STEPS).double()
    found.begin(3, "recover", unit)
    return found


def example(size=8, tiles=4, images=3):
    source = torch.Generator().manual_seed(size)
    collages = torch.randn(images, 3, size, size, generator=source, dtype=torch.float64)
    originals = torch.randn(images, tiles, 3, size, size, generator=source, dtype=torch.float64)
    return collages, originals


def loss_of(found, collages, originals, step):
    batch = Batch(
        collages, FIRST, torch.zeros(len(collages)), torch.arange(len(collages)), torch.tensor(step), originals
    )
    return found(batch)


def enlarged_by_hand(part, size):
    """(3, h, w) -> (3, size, size), bilinear; pixel centres on pixel centres, edges repeated."""
    height, width = part.shape[1:]
    rows = []
    for y in range(size):
        row = []
        for x in range(size):
            v = min(max((y + 0.5) * height / size - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = v - top, u - left
            upper = part[:, top, left] * (1 - b) + part[:, top, right] * b
            lower = part[:, bottom, left] * (1 - b) + part[:, bottom, right] * b
            row.append(upper * (1 - a) + lower * a)
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


def tiles_by_hand(collage, side):
    """Row by row; the first rows and columns have the pixels that are left over."""
    size = collage.shape[-1]
    edges = [size // side + (1 if k < size % side else 0) for k in range(side)]
    starts = [sum(edges[:k]) for k in range(side)]
    return [
        enlarged_by_hand(collage[:, starts[r] : starts[r] + edges[r], starts[c] : starts[c] + edges[c]], size)
        for r in range(side)
        for c in range(side)
    ]


def by_loops(network, collages, originals, kind, draws, side=2):
    """sum over tiles of the mean over features of | features of the tile - features of the original |."""
    layers, total = network[:-1], 0.0
    for collage, own in zip(collages, originals):
        for tile, original in zip(tiles_by_hand(collage, side), own):
            if kind:
                tile, original = by_hand(kind, tile, draws), by_hand(kind, original, draws)
            found, goal = layers(tile[None])[0], layers(original[None])[0].detach()
            total = total + sum(abs(found[k] - goal[k]) for k in range(len(found))) / len(found)
    return total


def both(found, pictures, step, kind, side=2):
    """(loss, gradient) of the objective with the first teacher, and those by loops."""
    (collages, originals), network, results = pictures, small_net().double(), []
    for loss in (
        lambda x: loss_of(found, x, originals, step),
        lambda x: by_loops(network, x, originals, kind, found.draws[step, 0], side),
    ):
        leaf = collages.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        results += [value.item(), leaf.grad]
    return results


@pytest.mark.parametrize("size", [8, 9])
def test_loss_and_gradient_of_three_steps(size):
    found, pictures = objective(), example(size)
    seen = {}
    for step in range(STEPS):
        seen.setdefault(KINDS[found.which[step]], step)
    assert set(seen) == set(KINDS)
    for kind, step in seen.items():
        value, gradient, expected, expected_gradient = both(found, pictures, step, kind)
        assert value == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-10)
        assert gradient.abs().max() > 1e-4


def test_without_augmentation():
    found = objective(kinds=())
    value, gradient, expected, expected_gradient = both(found, example(), 0, None)
    assert value == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("size, side", [(8, 1), (9, 3), (11, 3)])
def test_other_numbers_of_tiles(size, side):
    collages, originals = example(size, side**2, 1)
    expected = torch.stack([torch.stack(tiles_by_hand(collage, side)) for collage in collages])
    torch.testing.assert_close(enlarged_tiles(collages, side), expected, rtol=1e-9, atol=1e-9)
    found = objective(kinds=())
    value, _, by_hands, _ = both(found, (collages, originals), 0, None, side)
    assert value == pytest.approx(by_hands, rel=1e-9)


def test_several_teachers_see_the_images_as_they_normalise_them():
    terms = [objective((), 0), objective((), 1, OTHER)]
    collages, originals = example()

    def renormalised(x):
        mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (FIRST.mean, FIRST.std))
        other_mean, other_std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (OTHER.mean, OTHER.std))
        return (x * std + mean - other_mean) / other_std

    losses = [
        by_loops(small_net().double(), collages, originals, None, None).item(),
        by_loops(small_net(seed=1).double(), renormalised(collages), renormalised(originals), None, None).item(),
    ]
    mean = combined(terms, "mean")
    assert mean.needs_originals
    assert loss_of(mean, collages, originals, 0).item() == pytest.approx(sum(losses) / 2, rel=1e-6)
    turn = combined(terms, "turn")
    for step in range(4):
        assert loss_of(turn.at(step), collages, originals, step).item() == pytest.approx(losses[step % 2], rel=1e-6)


def test_collages_of_their_originals_have_no_loss():
    """A collage whose tiles, enlarged, are the originals."""
    collages, _ = example()
    originals = enlarged_tiles(collages, 2)
    assert loss_of(objective(), collages, originals, 0).item() == 0


def test_what_is_drawn_is_the_units_and_all_of_it_is_used():
    one, again, other = (objective(unit=unit) for unit in (0, 0, 1))
    assert torch.equal(one.draws, again.draws) and torch.equal(one.which, again.which)
    assert not torch.equal(one.draws, other.draws)
    assert len(one.draws.unique()) == one.draws.numel()


def test_the_teacher_stays_whole():
    found, x = objective(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    [network] = found.networks()
    torch.testing.assert_close(network(x), small_net().double()(x))
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert found.identity() == {"teacher": "sha0"}


def test_an_augmentation_that_there_is_not_is_named():
    settings = Settings.of({**METHODS["cim"], "augment": "crop_blur"})
    with pytest.raises(UserError, match="augment=crop_blur: 'blur'.*cutout"):
        build([teacher()], settings)
    assert build([teacher()], Settings.of({**METHODS["cim"], "augment": "none"})).kinds == ()


@pytest.mark.parametrize(
    "view, said",
    [
        ({"crop": "resized"}, "--crop resized"),
        ({"flip": True}, "--flip on"),
        ({"jitter": 4}, "--jitter 4"),
        ({"stage_sizes": (0.5, 1.0)}, "--stage-sizes 0.5 1"),
    ],
)
def test_a_view_that_moves_tiles_is_refused(view, said):
    """Each piece would be compared with the original of another tile."""
    with pytest.raises(UserError, match=f"^{said}: .* each tile with its original"):
        build([teacher()], Settings.of({**METHODS["cim"], **view}))
