"""Batches of augmented images: each image once an epoch, whatever process makes them."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import gray
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches


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


@pytest.mark.parametrize(
    "count, batch_size, sizes",
    [(12, 4, [4, 4, 4]), (11, 4, [4, 4, 3]), (10, 4, [4, 4, 2]), (9, 4, [4, 4]), (4, 10, [4]), (3, 2, [2])],
)
def test_an_epoch_shows_each_image_once(tmp_path, count, batch_size, sizes):
    batches = AugmentedBatches(numbered(tmp_path, count), unchanged, 0)
    orders = []
    stream = batches.stream(batch_size, 2, 0, "student")
    for _ in range(2):
        seen = values(islice(stream, batches.schedule(batch_size, 2).steps_per_epoch))
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
    batches = AugmentedBatches(ImageFolder(tmp_path, "--syn-dir"), unchanged, 0)
    assert values(batches.stream(4, 2, 0)) == [[1], [1]] and batches.schedule(4, 2).steps_per_epoch == 1


def test_labels_go_with_their_images(tmp_path):
    for images, labels in AugmentedBatches(numbered(tmp_path, 11), unchanged, 0).stream(4, 1, 0):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
        assert [int(image[0, 0, 0]) // 5 % 2 for image in images] == labels.tolist()


def test_batches_depend_on_the_stream_and_not_on_the_workers(tmp_path):
    folder = numbered(tmp_path, 11)

    def run(workers, *stream):
        return list(AugmentedBatches(folder, jittered, workers).stream(4, 2, *stream))

    def same(one, other):
        return len(one) == len(other) and all(torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y))

    first = run(0, 0, "student")
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    assert len(first) == 6
    assert same(run(0, 0, "student"), first)
    assert same(run(2, 0, "student"), first)
    assert not same(run(0, 0, "squeeze"), first)
    assert not same(run(0, 1, "student"), first)
