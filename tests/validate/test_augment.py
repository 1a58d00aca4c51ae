"""What students see: crop, flip, RandAugment and shuffled tiles of an image, CutMix and MixUp of a batch."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from helpers import few, noise
from students import geometry, noise_folder, protocol
from utils.data.images import resize_whole
from utils.run.errors import UserError
from validate import augment

CLASSES = 6


def mixed(name, seed, labels=(0, 1, 2, 3, 4, 5), size=8):
    """Image k is all k + 1, so that the mixed pixels say where they come from."""
    labels = torch.tensor(labels)
    images = (torch.arange(len(labels)) + 1.0).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
    torch.manual_seed(seed)
    drawn = augment.draw_mix(name, len(labels), size)
    return images, labels, *augment.mix(images, labels, drawn, CLASSES)


def test_cutmix_shares_are_pixel_shares():
    cut = 0
    for seed in range(20):
        images, labels, result, shares = mixed("cutmix", seed)
        assert set(result.unique().tolist()) <= {1, 2, 3, 4, 5, 6}
        for pixels, row in zip(result, shares):
            found = torch.stack([(pixels[0] == k + 1).float().mean() for k in range(CLASSES)])
            torch.testing.assert_close(row, found)
        torch.testing.assert_close(shares.sum(1), torch.ones(len(labels)))
        cut += bool(((shares > 0).sum(1) == 2).all())
    assert cut >= 15, "most batches are cut indeed"


def test_cutmix_of_one_class_keeps_its_label_whole():
    *_, shares = mixed("cutmix", 0, (2, 2, 2))
    torch.testing.assert_close(shares, torch.eye(CLASSES)[[2, 2, 2]])


def test_mixup_shares_are_weights():
    weights = []
    for seed in range(20):
        *_, result, shares = mixed("mixup", seed)
        torch.testing.assert_close(shares.sum(1), torch.ones(6))
        assert ((shares > 0).sum(1) <= 2).all()
        # Image k is all k + 1, so a mixed pixel is the shares' mean of k + 1.
        expected = (shares * (torch.arange(CLASSES) + 1.0)).sum(1)
        torch.testing.assert_close(result, expected.view(-1, 1, 1, 1).expand_as(result))
        weights.append(shares.max().item())
    assert min(weights) < 0.9, "some batches are mixed indeed"


def test_no_mix_is_one_hot():
    images, labels, result, shares = mixed("none", 0, (5, 0, 2))
    assert torch.equal(result, images)
    assert shares.tolist() == [[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_a_mixed_batch_leaves_the_given_one_alone(name):
    images, labels, result, _ = mixed(name, 3)
    torch.testing.assert_close(images[:, 0, 0, 0], labels + 1.0)
    assert not torch.equal(result, images)


def test_cutmix_takes_a_uniform_share_and_place():
    """Beta(1, 1) is uniform, so half of the area is replaced in the mean where the box is not cut off at the edge."""
    torch.manual_seed(0)
    drawn = torch.stack([augment.draw_mix("cutmix", 4, 64) for _ in range(4000)])
    own, top, left, bottom, right = drawn.T
    height, width = bottom - top, right - left
    whole = (top > 0) & (left > 0) & (bottom < 64) & (right < 64)
    assert (height[whole] == width[whole]).all()
    torch.testing.assert_close(own, 1 - height * width / 64**2)
    # The centre is uniform over the pixels, so a box is as often cut off on either side.
    assert abs((top == 0).float().mean() - (bottom == 64).float().mean()) < 0.04
    # E[area] for a box of side 2r around a uniform centre, cut at the edges, area share uniform: 0.5 without the cut.
    assert 0.2 < 1 - own.mean() < 0.5


@pytest.mark.parametrize("own, side", [(0.75, 32), (0.36, 50), (0.9, 20)])
def test_cutmix_replaces_the_share_that_is_drawn(monkeypatch, own, side):
    """A box of the size S sqrt(1 - share), rounded down to an even one; at the edges what is left of it."""
    monkeypatch.setattr("torch.distributions.Beta.sample", lambda self, *_: torch.tensor(own))
    torch.manual_seed(0)
    boxes = torch.stack([augment.draw_mix("cutmix", 4, 64)[1:] for _ in range(60)])
    sides = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    assert sides.max() == side and (sides == side).float().mean() > 0.15


def test_mixup_weighs_by_its_published_distribution():
    """Beta(a, a) with a = 0.8: mean 1/2, variance 1 / (4 (2 a + 1))."""
    torch.manual_seed(0)
    own = torch.stack([augment.draw_mix("mixup", 4, 8)[0] for _ in range(4000)])
    assert own.mean().item() == pytest.approx(0.5, abs=0.02)
    assert own.var().item() == pytest.approx(1 / (4 * 2.6), rel=0.05)


# --- one image ---------------------------------------------------------------------------------------------------


def augmentation(size=16, **changes):
    settings = {**dict(rand_augment="none", min_scale=1.0, flip=0.0), **changes}
    return augment.Augmentation(protocol(**settings), geometry(input_size=size, mean=(0.5, 0.5, 0.5)))


def shown(augmented, image):
    image = augmented.distort(image)
    return augmented.view(image, augmented.draw(*image.size))


def picture(tmp_path, size=24):
    return Image.fromarray(noise(tmp_path / "p.png", 0, size))


@pytest.mark.parametrize("config", ["nonsense", "", "rand-x9", "rand-m6-n1.5", "rand-m6-n2-q7", "augmix-m3"])
def test_bad_rand_augment(config):
    with pytest.raises(UserError, match=r"--rand-augment .* RandAugment \(.+\); for example"):
        augmentation(rand_augment=config)


@pytest.mark.parametrize("config", ["rand-m6-n2-mstd1.0", "none"])
def test_augmented_size(tmp_path, config):
    augmented = augmentation(rand_augment=config, min_scale=0.25)
    results = [shown(augmented, picture(tmp_path)) for _ in range(4)]
    assert all(result.size == (16, 16) and result.mode == "RGB" for result in results)
    assert len({result.tobytes() for result in results}) > 1


@pytest.mark.parametrize("magnitude", range(11))
def test_every_magnitude_can_be_drawn(tmp_path, magnitude):
    """Some operations of timm have no meaning for Pillow at an end of their scale."""
    augmented, image = augmentation(rand_augment=f"rand-m{magnitude}-n2"), picture(tmp_path)
    for seed in range(60):
        random.seed(seed)
        np.random.seed(seed)
        assert augmented.distort(image).size == image.size


def test_rand_augment_is_timms_and_fills_with_the_mean(tmp_path):
    """What rotating, shearing and shifting leave empty has the mean of the images, which normalises to 0."""
    image, config = picture(tmp_path), "rand-m6-n2-mstd1.0"
    own = augment.Augmentation(protocol(rand_augment=config), geometry(input_size=24, mean=(0.2, 0.4, 0.8)))
    theirs = rand_augment_transform(config, {"img_mean": (51, 102, 204)})
    for seed in range(60):
        found = []
        for transform in (own.distort, theirs):
            random.seed(seed)
            np.random.seed(seed)
            found.append(transform(image).tobytes())
        assert found[0] == found[1], seed


@pytest.mark.parametrize("flip, count", [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_without_rand_augment_and_crop_only_the_flip_is_left(tmp_path, flip, count):
    torch.manual_seed(0)
    image = picture(tmp_path)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = {shown(augmentation(size=24, flip=flip), image).tobytes() for _ in range(20)}
    assert seen == {name.tobytes() for name, there in ((image, flip < 1), (flipped, flip > 0)) if there}
    assert len(seen) == count


@few
@given(st.integers(16, 60), st.floats(0.05, 0.7), st.integers(0, 2**30))
def test_a_view_lies_in_the_image_and_takes_the_share_it_may(side, least, seed):
    torch.manual_seed(seed)
    top, left, tall, wide, flip = augmentation(min_scale=least, flip=0.5).draw(side, side)
    assert 0 <= top <= top + tall <= side and 0 <= left <= left + wide <= side and flip in (0, 1)
    assert tall * wide >= least * side**2 - 2 * side, "but for sides rounded to whole pixels"


def test_crops_are_a_third_wider_or_taller_at_most_and_some_are_nearly():
    torch.manual_seed(0)
    tall, wide = torch.tensor([augmentation(min_scale=0.25).draw(300, 300)[2:4] for _ in range(200)]).T
    ratios = wide / tall
    assert 0.74 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.35
    assert 70 < (ratios > 1).sum() < 130, "as often wide as tall"


def photo(width, height):
    """Noise: no part of it is like another one."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("width, height", [(40, 16), (16, 40), (33, 16), (16, 16), (17 * 16, 16)])
def test_without_crops_a_student_sees_what_the_other_stages_see(width, height):
    """The square in the middle and not the whole squashed; a circle stays a circle."""
    image = photo(width, height)
    assert shown(augmentation(16), image).tobytes() == resize_whole(16)(image).tobytes()


@pytest.mark.parametrize("width, height", [(80, 32), (32, 80)])
def test_the_whole_view_is_resized_as_by_the_other_stages(width, height):
    """But for what the resampling takes from beyond the square: a gradient has nothing else there."""
    row = np.linspace(0, 250, max(width, height)).astype(np.uint8)
    image = Image.fromarray(np.repeat(row[None, :, None], min(width, height), 0).repeat(3, 2))
    image = image if width > height else image.transpose(Image.Transpose.ROTATE_90)
    own, theirs = (np.asarray(one, int) for one in (shown(augmentation(16), image), resize_whole(16)(image)))
    assert abs(own - theirs).max() <= 3 and theirs.max() - theirs.min() < 110, "a share of the gradient"


def test_a_tile_is_one_of_the_square_in_the_middle():
    image, square = photo(40, 16), photo(40, 16).crop((12, 0, 28, 16))
    expected = {square.crop((x, y, x + 8, y + 8)).tobytes() for x in (0, 8) for y in (0, 8)}
    torch.manual_seed(0)
    tiled = augmentation(8, tiles=2, tile_share=1.0)
    assert {shown(tiled, image).tobytes() for _ in range(40)} == expected


def test_strips_are_shuffled_of_the_square_in_the_middle():
    image, square = photo(40, 16), np.asarray(photo(40, 16))[:, 12:28]
    torch.manual_seed(0)
    for _ in range(8):
        found = np.asarray(shown(augmentation(16, shuffle_patches=2), image))
        assert sorted(found.reshape(-1, 3).tolist()) == sorted(square.reshape(-1, 3).tolist())


def test_a_crop_may_be_from_anywhere():
    torch.manual_seed(0)
    lefts = [augmentation(16, min_scale=0.25).draw(48, 16)[1] for _ in range(60)]
    assert min(lefts) < 10 and max(lefts) > 22


def test_patches_are_shuffled_in_strips():
    """RDED shuffles the columns of tiles, then the rows: a 2 x 2 collage has four orders, in all of which neighbours in
    a column stay in one column."""
    tiles = np.zeros((8, 8, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            tiles[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1 + 2 * row + column
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        result = np.asarray(augmentation(8, shuffle_patches=2).distort(Image.fromarray(tiles)))[..., 0]
        seen.add(tuple(int(result[y, x]) for y in (0, 7) for x in (0, 7)))
    assert seen == {(1, 2, 3, 4), (2, 1, 4, 3), (3, 4, 1, 2), (4, 3, 2, 1)}


# --- batches -----------------------------------------------------------------------------------------------------


def test_recorded_views_are_shown_again(tmp_path):
    folder = noise_folder(tmp_path, 6, 2, 20)
    views = augment.Views(folder, augmentation(rand_augment="rand-m6-n2-mstd1.0", min_scale=0.3, flip=0.5), 0)
    first = list(views.stream(4, 2, 0, "student"))
    names = [
        ((0, "student", epoch, step), *(tensor.tolist() for tensor in first[2 * epoch + step][2:]))
        for epoch in range(2)
        for step in range(2)
    ]
    again = list(views.batches(names))
    assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))
    moved = [(name, order, [[0, 0, 20, 20, 1 - view[4]] for view in drawn]) for name, order, drawn in names]
    assert not torch.equal(next(views.batches(moved))[0], first[0][0]), "the view shown is the recorded one"


@pytest.mark.parametrize(
    "changes, recorded",
    [({}, True), ({"min_scale": 0.3}, True), ({"rand_augment": "rand-m6-n2"}, False), ({"shuffle_patches": 2}, False)],
)
def test_what_five_numbers_do_not_describe_depends_on_the_stream(tmp_path, changes, recorded):
    """The same recorded view under the name of another stream is the same image only if nothing else was drawn."""
    views = augment.Views(noise_folder(tmp_path, 8, 2, 20), augmentation(**changes), 0)
    keys = [((0, "student", epoch, 0), list(range(8)), [[0, 0, 20, 20, 0]] * 8) for epoch in range(3)]
    first, *others = (batch[0] for batch in views.batches(keys))
    assert all(torch.equal(first, other) for other in others) is recorded
    assert views.augmentation.is_recorded is recorded
