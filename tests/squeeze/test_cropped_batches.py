"""The views of squeeze: cropped on the device a batch at a time, against torchvision one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from helpers import gray
from squeeze import augment
from squeeze.augment import CroppedBatches, batches_of
from utils.data.image_folder import ImageFolder
from utils.data.loader import AugmentedBatches
from utils.run.seeds import seeded

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Six images of noise, one of them wide and one tall."""
    generator = np.random.default_rng(0)
    for number, (height, width) in enumerate([(16, 16)] * 4 + [(16, 40), (23, 16)]):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)
    return ImageFolder(tmp_path / "images", "--train-dir")


def by_torchvision(folder, key, size, padding):
    """Each image by itself, with what is drawn for it in its turn."""
    stream, indices = key
    views = [v2.Resize(size), v2.CenterCrop(size), v2.RandomCrop(size, padding=padding), v2.RandomHorizontalFlip()]
    with seeded(*stream):
        images = [v2.Compose(views)(Image.open(folder.root / folder.paths[index])) for index in indices]
    return torch.stack([v2.functional.pil_to_tensor(image) for image in images])


@pytest.mark.parametrize("size", [8, 16, 24])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_view_is_torchvisions(folder, size, padding):
    folder.load()
    batches = batches_of(folder, size, padding, CPU)
    assert isinstance(batches, CroppedBatches)
    seen = 0
    for key in batches.schedule(batch_size=4, epochs=10).keys((3, "squeeze")):
        images, labels = batches[key]
        assert torch.equal(images, by_torchvision(folder, key, size, padding))
        assert labels.tolist() == [folder.labels[index] for index in key[1]]
        seen += len(images)
    assert seen == 60 and images.is_contiguous(memory_format=torch.channels_last)


def test_views_of_large_images_are_torchvisions(folder):
    folder.load()
    batches = batches_of(folder, 72, 4, CPU)
    views = v2.Compose([v2.RandomResizedCrop(72), v2.RandomHorizontalFlip()])
    for key in batches.schedule(batch_size=4, epochs=3).keys((3, "squeeze")):
        stream, indices = key
        with seeded(*stream):
            images = [views(Image.open(folder.root / folder.paths[index])) for index in indices]
        [(found, _)] = batches.batches([key])
        assert torch.equal(found, torch.stack([v2.functional.pil_to_tensor(image) for image in images]))


def test_a_stream_is_the_same_by_workers_and_on_the_device(folder):
    """From a later batch on, too."""
    folder.load()
    ways = batches_of(folder, 16, 4, CPU), batches_of(folder, 16, 4, CPU, workers=2)
    assert [type(way) for way in ways] == [CroppedBatches, AugmentedBatches]
    for start in (0, 3):
        one, other = (list(way.stream(4, 3, 7, "squeeze", start=start)) for way in ways)
        assert len(one) == len(other) == 6 - start
        for found, expected in zip(one, other):
            assert all(torch.equal(*pair) for pair in zip(found, expected))


def test_images_that_are_large_many_or_not_in_memory_are_read_one_by_one(folder, monkeypatch, tmp_path):
    assert type(batches_of(folder, 16, 4, CPU)) is AugmentedBatches, "they are not loaded"
    folder.load()
    assert type(batches_of(folder, 72, 4, CPU)) is AugmentedBatches
    monkeypatch.setattr(augment, "IN_MEMORY_BYTES", 6 * 3 * 16 * 16)
    assert type(batches_of(folder, 16, 4, CPU)) is CroppedBatches
    monkeypatch.setattr(augment, "IN_MEMORY_BYTES", 6 * 3 * 16 * 16 - 1)
    assert type(batches_of(folder, 16, 4, CPU)) is AugmentedBatches


def test_more_images_than_are_put_together_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(augment, "CHUNK", 3)
    for number in range(8):
        gray(tmp_path / "train" / "a" / f"{number}.png", 20 * number, size=8)
    folder = ImageFolder(tmp_path / "train", "--train-dir")
    folder.load()
    images, _ = batches_of(folder, 8, 0, CPU)[("x",), list(range(8))]
    assert images[:, 0, 0, 0].tolist() == [20 * number for number in range(8)]
