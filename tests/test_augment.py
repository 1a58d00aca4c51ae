"""What students see, the batches they see it in, and the loss they get for it."""
import random
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import gray, noise
from utils.files import UserError
from utils.images import ImageFolder
from utils.loader import Batches
from validate import augment
from validate.train import _loss

CLASSES = 6


def mixed(name, seed, labels=(0, 1, 2, 3, 4, 5), size=8):
    """Image k is all k + 1, so that the mixed pixels say where they come from."""
    labels = torch.tensor(labels)
    images = (torch.arange(len(labels)) + 1.0).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
    torch.manual_seed(seed)
    return images, labels, *augment.mixer(name, CLASSES)(images, labels)


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


@pytest.mark.parametrize("config", ["nonsense", "", "rand-x9", "rand-m6-n1.5", "rand-m6-n2-q7", "augmix-m3"])
def test_bad_rand_augment(config):
    with pytest.raises(UserError, match="--rand-augment"):
        augment.augmentation(16, config, 0.25, 1.0, (0.5, 0.5, 0.5))


def picture(tmp_path, size=24):
    return Image.fromarray(noise(tmp_path / "p.png", 0, size))


@pytest.mark.parametrize("config", ["rand-m6-n2-mstd1.0", "none"])
def test_augmented_size(tmp_path, config):
    transform = augment.augmentation(16, config, 0.25, 1.0, (0.5, 0.5, 0.5))
    results = [transform(picture(tmp_path)) for _ in range(4)]
    assert all(result.size == (16, 16) and result.mode == "RGB" for result in results)
    assert len({result.tobytes() for result in results}) > 1


def test_without_rand_augment_and_crop_only_the_flip_is_left(tmp_path):
    torch.manual_seed(0)
    transform = augment.augmentation(24, "none", 1.0, 1.0, (0.5, 0.5, 0.5))
    image = picture(tmp_path)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    seen = {transform(image).tobytes() for _ in range(20)}
    assert seen == {image.tobytes(), flipped.tobytes()}


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
        seen = values(islice(stream, batches.steps(batch_size)))
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
    assert values(batches.stream(4, 2, 0)) == [[1], [1]] and batches.steps(4) == 1


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
    images = torch.zeros(7, 3, 2, 2)
    loss = _loss(logits, images, torch.zeros(7, 5), lambda seen: teacher.float() + seen.sum(), temperature)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    # d KL / d logits = (q - p) / (T * batch)
    torch.testing.assert_close(logits.grad.double(), (q - p) / (temperature * 7), rtol=1e-4, atol=1e-7)


def test_the_teacher_labels_the_very_images_without_gradient():
    weight = torch.ones((), requires_grad=True)
    seen = []

    def teacher(images):
        seen.append(images)
        return weight * images.flatten(1)

    images = torch.randn(2, 3, 1, 1)
    loss = _loss(torch.randn(2, 3, requires_grad=True), images, torch.zeros(2, 3), teacher, 4.0)
    loss.backward()
    assert seen[0] is images and weight.grad is None


def test_hard_loss_is_cross_entropy_to_the_shares():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    log_q = logits.double() - logits.double().exp().sum(1, keepdim=True).log()
    expected = -(shares * log_q).sum() / 2
    assert _loss(logits, None, shares, None, 20.0).item() == pytest.approx(expected.item(), rel=1e-6)
