"""What students see, the batches they see it in, and the loss they get for it."""
import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import CPU, few, gray, noise
from utils.files import UserError
from utils.images import ImageFolder
from utils.loader import Batches
from validate import augment
from validate.protocols import PROTOCOLS, resolve
from validate.train import Stream, _losses, labelled

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


def test_a_mixed_batch_leaves_the_given_one_alone():
    for name in ("cutmix", "mixup"):
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


@pytest.mark.parametrize("config", ["nonsense", "", "rand-x9", "rand-m6-n1.5", "rand-m6-n2-q7", "augmix-m3"])
def test_bad_rand_augment(config):
    with pytest.raises(UserError, match="--rand-augment"):
        augmentation(rand_augment=config)


def augmentation(size=16, rand_augment="none", shuffle_patches=1, min_scale=1.0, max_scale=1.0, flip=0.0):
    return augment.Augmentation(size, rand_augment, shuffle_patches, min_scale, max_scale, flip, (0.5, 0.5, 0.5))


def shown(augmented, image):
    return augmented.view(augmented.distort(image), augmented.draw(*image.size))


def picture(tmp_path, size=24):
    return Image.fromarray(noise(tmp_path / "p.png", 0, size))


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
        random.seed(seed), np.random.seed(seed)
        assert augmented.distort(image).size == image.size


@pytest.mark.parametrize("flip, count", [(0.0, 1), (0.5, 2), (1.0, 1)])
def test_without_rand_augment_and_crop_only_the_flip_is_left(tmp_path, flip, count):
    torch.manual_seed(0)
    image = picture(tmp_path)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = {shown(augmentation(size=24, flip=flip), image).tobytes() for _ in range(20)}
    assert seen == {name.tobytes() for name, there in ((image, flip < 1), (flipped, flip > 0)) if there} and len(seen) == count


@few
@given(st.integers(16, 60), st.floats(0.05, 0.7), st.integers(0, 2**30))
def test_a_view_lies_in_the_image_and_takes_the_share_it_may(side, least, seed):
    torch.manual_seed(seed)
    top, left, tall, wide, flip = augmentation(min_scale=least, flip=0.5).draw(side, side)
    assert 0 <= top <= top + tall <= side and 0 <= left <= left + wide <= side and flip in (0, 1)
    assert tall * wide >= least * side**2 - 2 * side, "but for sides rounded to whole pixels"


def test_patches_are_shuffled_in_strips():
    """RDED shuffles the columns of tiles, then the rows: a 2 x 2 collage has four orders, in all of which neighbours in a
    column stay in one column."""
    tiles = np.zeros((8, 8, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            tiles[4 * row:4 * row + 4, 4 * column:4 * column + 4] = 1 + 2 * row + column
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        result = np.asarray(augmentation(8, shuffle_patches=2).distort(Image.fromarray(tiles)))[..., 0]
        seen.add(tuple(int(result[y, x]) for y in (0, 7) for x in (0, 7)))
    assert seen == {(1, 2, 3, 4), (2, 1, 4, 3), (3, 4, 1, 2), (4, 3, 2, 1)}


def test_recorded_views_are_shown_again(tmp_path):
    folder = numbered(tmp_path, 6)
    for k in range(6):
        noise(tmp_path / f"c{k % 2}" / f"{k:02d}.png", k, 20)
    views = augment.Views(folder, augmentation(rand_augment="rand-m6-n2-mstd1.0", min_scale=0.3, flip=0.5), 0)
    first = list(views.stream(4, 2, 0, "student"))
    names = [((0, "student", epoch, step), *(tensor.tolist() for tensor in first[2 * epoch + step][2:]))
             for epoch in range(2) for step in range(2)]
    again = list(views.batches(names))
    assert all(torch.equal(a, b) for one, other in zip(first, again) for a, b in zip(one, other))
    moved = [(name, order, [[0, 0, 20, 20, 1 - view[4]] for view in drawn]) for name, order, drawn in names]
    assert not torch.equal(next(views.batches(moved))[0], first[0][0]), "the view shown is the recorded one"


# --- batches ----------------------------------------------------------------------------------------------------

def numbered(tmp_path, count):
    """`count` images in two classes, each of a grey of its own."""
    for k in range(count):
        gray(tmp_path / f"c{k % 2}" / f"{k:02d}.png", 5 * k)
    return ImageFolder(tmp_path, "--syn-dir")


def unchanged(image):
    return image


def jittered(image):
    """Draws from the three global generators, as torchvision and timm do."""
    shift = random.randrange(50) + 50 * np.random.randint(50) + 2500 * int(torch.randint(20, ()))
    return Image.fromarray((np.asarray(image).astype(np.uint32) + shift).astype(np.uint8))


def values(batches):
    return [[int(image[0, 0, 0]) // 5 for image in images] for images, _ in batches]


@pytest.mark.parametrize("count, batch_size, sizes", [
    (12, 4, [4, 4, 4]), (11, 4, [4, 4, 3]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (4, 10, [4]), (3, 2, [2])])
def test_an_epoch_shows_each_image_once(tmp_path, count, batch_size, sizes):
    batches = Batches(numbered(tmp_path, count), unchanged, 0)
    orders = []
    stream = batches.stream(batch_size, 2, 0, "student")
    for _ in range(2):
        seen = values(islice(stream, batches.passes(batch_size, 2).steps))
        assert [len(batch) for batch in seen] == sizes
        flat = sum(seen, [])
        # A last batch of one image is left out: BatchNorm has no variance for it.
        assert len(set(flat)) == len(flat) == sum(sizes) and set(flat) <= set(range(count))
        orders.append(flat)
    if count > 4:
        assert orders[0] != orders[1] and orders[0] != sorted(orders[0]), "shuffled anew"
    assert next(stream, None) is None


def test_a_single_image_is_a_batch(tmp_path):
    gray(tmp_path / "a" / "0.png", 5)
    batches = Batches(ImageFolder(tmp_path, "--syn-dir"), unchanged, 0)
    assert values(batches.stream(4, 2, 0)) == [[1], [1]] and batches.passes(4, 2).steps == 1


def test_labels_go_with_their_images(tmp_path):
    for images, labels in Batches(numbered(tmp_path, 11), unchanged, 0).stream(4, 1, 0):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
        assert [int(image[0, 0, 0]) // 5 % 2 for image in images] == labels.tolist()


def test_batches_depend_on_the_stream_and_not_on_the_workers(tmp_path):
    folder = numbered(tmp_path, 11)

    def run(workers, *stream):
        return list(Batches(folder, jittered, workers).stream(4, 2, *stream))

    def same(one, other):
        return len(one) == len(other) and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y))

    first = run(0, 0, "student")
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    assert len(first) == 6
    assert same(run(0, 0, "student"), first)
    assert same(run(2, 0, "student"), first)
    assert not same(run(0, 0, "squeeze"), first)
    assert not same(run(0, 1, "student"), first)


# --- the loss ---------------------------------------------------------------------------------------------------

def protocol(**flags):
    return resolve({**PROTOCOLS["delt"], **flags}, "conv3", 10, 10, 100, 32, 1)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_loss_is_the_divergence_from_the_teacher(temperature):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (10 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p = torch.exp(teacher / temperature)
    p = p / p.sum(1, keepdim=True)
    q = torch.exp(student / temperature)
    q = q / q.sum(1, keepdim=True)
    expected = (p * (p.log() - q.log())).sum() / 7  # batch mean, no factor of the temperature squared

    logits = student.float().requires_grad_()
    loss = _losses(logits, p.float(), protocol(temperature=temperature)).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    # d KL / d logits = (q - p) / (T * batch)
    torch.testing.assert_close(logits.grad.double(), (q - p) / (temperature * 7), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [4.0, 20.0])
def test_the_teacher_labels_the_mixed_images_at_the_temperature(tmp_path, temperature):
    weight = torch.ones((), requires_grad=True)
    seen = []

    class Teacher(torch.nn.Module):
        def forward(self, images):
            seen.append(images)
            return weight * images.flatten(1)[:, :CLASSES]

    views = augment.Views(numbered(tmp_path, 6), augmentation(), 0)
    stream = Stream(views, protocol(epochs=1, batch_size=6, temperature=temperature), 0, CLASSES, CPU, (0.5,) * 3, (0.1,) * 3)
    (step, target), = labelled(stream, Teacher())
    assert seen[0] is step.images and not target.requires_grad
    raw = torch.exp(step.images.flatten(1)[:, :CLASSES].double() / temperature)
    torch.testing.assert_close(target.double(), raw / raw.sum(1, keepdim=True), rtol=1e-5, atol=1e-7)


def test_hard_loss_is_cross_entropy_to_the_shares():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    log_q = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    expected = -(shares * log_q).sum() / 2
    assert _losses(logits, shares, protocol(labels="hard")).mean().item() == pytest.approx(expected.item(), rel=1e-6)
