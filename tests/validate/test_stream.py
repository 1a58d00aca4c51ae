"""The batches of a student: the same for whoever learns from them, from whichever step on, and when shown again."""

import numpy as np
import pytest
import torch
from PIL import Image

from students import MEAN, PLAIN, STD, noise_folder, stream

LINE = dict(epochs=3, batch_size=5, min_scale=0.4)  # of 12 images: batches of 5, 5 and 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return noise_folder(tmp_path_factory.mktemp("set"), size=10)


def draw(batches, **where):
    return list(batches.draw(range(3), **where))


def same(one, other):
    names = ("images", "labels", "shares", "order", "views", "mix")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_an_unmixed_batch_is_the_images_as_they_were_drawn(tmp_path):
    """Normalised crops, resized to the input size and flipped, of the images that the order names."""
    folder = noise_folder(tmp_path, size=10)
    for step in stream(folder, **LINE, mix="none", rand_augment="none").draw(range(2)):
        for image, label, index, view in zip(step.images, step.labels, step.order.tolist(), step.views.tolist()):
            top, left, height, width, flip = view
            picture = Image.open(tmp_path / folder.paths[index]).convert("RGB")
            picture = picture.crop((left, top, left + width, top + height)).resize((8, 8), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)[:, ::-1] if flip else np.asarray(picture)
            expected = torch.from_numpy(((pixels / 255 - MEAN) / STD).copy()).permute(2, 0, 1)
            torch.testing.assert_close(image.double(), expected, rtol=1e-4, atol=1e-5)
            assert folder.paths[index].startswith(f"c{label}/")


def test_the_labels_of_a_mixed_batch_are_those_before_mixing(folder):
    for step in draw(stream(folder, **LINE, mix="mixup")):
        own, hot = step.mix[0], torch.eye(4)[step.labels]
        assert step.labels.tolist() == [folder.labels[index] for index in step.order.tolist()]
        torch.testing.assert_close(step.shares, own * hot + (1 - own) * hot.roll(1, 0))


def test_each_epoch_shows_each_image_once_in_batches_of_the_size(folder):
    steps = draw(stream(folder, **LINE))
    assert [len(step.images) for step in steps] == [step.batch_size for step in steps] == [5, 5, 2] * 3
    orders = [torch.cat([step.order for step in steps[k : k + 3]]).tolist() for k in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in orders) and orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_each_step_of_each_epoch_is_mixed_anew(folder, mix):
    mixes = [tuple(step.mix.tolist()) for step in draw(stream(folder, **LINE, mix=mix))]
    assert len(set(mixes)) == 9


@pytest.mark.parametrize("start", [1, 3, 4, 8])
def test_a_stream_from_a_step_on_is_its_rest(folder, start):
    batches = stream(folder, **LINE)
    whole, rest = draw(batches), draw(batches, start=start)
    assert len(rest) == 9 - start and all(map(same, whole[start:], rest))


def test_epochs_drawn_alone_are_those_of_the_whole(folder):
    """As shards of stored labels are."""
    batches = stream(folder, **LINE)
    assert all(map(same, draw(batches)[3:6], list(batches.draw(range(1, 2)))))


def test_what_was_drawn_can_be_shown_again(folder):
    batches = stream(folder, **LINE)
    steps = draw(batches)
    keys = [(name, step.order.tolist(), step.views.tolist()) for (name, _), step in zip(batches.keys(range(3)), steps)]
    again, numbers = zip(*batches.replay((key, step.mix, k) for k, (key, step) in enumerate(zip(keys, steps))))
    assert len(again) == 9 and all(map(same, steps, again)) and numbers == tuple(range(9))


@pytest.mark.parametrize(
    "changes", [dict(loss="mse"), dict(temperature=2.0), dict(optimizer="sgd", lr=0.1), dict(weight_average=0.9)]
)
def test_every_student_sees_the_same(folder, changes):
    torch.manual_seed(99)
    assert all(map(same, draw(stream(folder, **LINE)), draw(stream(folder, **LINE, **changes))))


def test_seeds_see_different_things(folder):
    one, other = (draw(stream(folder, seed, **LINE)) for seed in (0, 1))
    assert not any(map(same, one, other))
    assert any(not torch.equal(a.order, b.order) for a, b in zip(one, other))
    assert any(not torch.equal(a.views, b.views) for a, b in zip(one, other))
    assert any(not torch.equal(a.mix, b.mix) for a, b in zip(one, other))


def test_without_augmentation_only_the_order_differs(folder):
    first, second = (draw(stream(folder, seed, **{**LINE, **PLAIN})) for seed in (0, 1))
    images = {}
    for step in first + second:
        assert step.mix.tolist() == [1, 0, 0, 0, 0]
        for index, image in zip(step.order.tolist(), step.images):
            assert torch.equal(images.setdefault(index, image), image)
    assert len(images) == 12


def test_a_part_of_a_step_is_of_some_of_its_images(folder):
    step = draw(stream(folder, **LINE))[0]
    part = step.subset([3, 1])
    assert torch.equal(part.images, step.images[[3, 1]]) and torch.equal(part.labels, step.labels[[3, 1]])
    assert torch.equal(part.shares, step.shares[[3, 1]]) and torch.equal(part.order, step.order[[3, 1]])
    assert torch.equal(part.views, step.views[[3, 1]])
    assert part.batch_size == 5, "the loss is still a mean over all of them"
