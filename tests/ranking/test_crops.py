"""What a selection chooses among: candidates at random, and random crops of images."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from helpers import noise
from ranking.crops import Centred, Crops, best, candidates
from utils.data.image_folder import ImageFolder


@pytest.fixture
def folder(tmp_path):
    """Three images of class a, 24 x 16 pixels; ten of b, 8 x 8."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 24, 3), np.uint8)
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png")
    for number in range(10):
        noise(tmp_path / "b" / f"{number}.png", number)
    return ImageFolder(tmp_path, "--train-dir")


def test_candidates_are_some_of_each_class_and_all_of_a_small_one(folder):
    chosen = {seed: candidates(folder, 5, seed) for seed in range(5)}
    for found in chosen.values():
        assert found.of_class(0) == folder.of_class(0)
        assert len(found.of_class(1)) == 5 and set(found.of_class(1)) < set(folder.of_class(1))
        assert found.paths == sorted(found.paths) and found.labels == [0] * 3 + [1] * 5
    assert len({tuple(found.paths) for found in chosen.values()}) > 1
    assert candidates(folder, 5, 3).paths == chosen[3].paths
    assert candidates(folder, None, 0).paths == folder.paths


def test_candidates_of_a_class_do_not_depend_on_other_classes(folder, tmp_path):
    before = candidates(folder, 5, 0).of_class(1)
    noise(tmp_path / "aa" / "0.png", 99)
    assert candidates(ImageFolder(tmp_path, "--train-dir"), 5, 0).of_class(2) == before


def test_classes_draw_candidates_of_their_own(tmp_path):
    """And not images of the same places: files of one number may show the same scene."""
    for name in "ab":
        for number in range(20):
            noise(tmp_path / name / f"{number:02d}.png", number)
    found = candidates(ImageFolder(tmp_path, "--train-dir"), 10, 0)
    assert [path[1:] for path in found.of_class(0)] != [path[1:] for path in found.of_class(1)]


def test_crops_are_squares_in_the_image(folder):
    boxes = np.array(Crops(folder, 200, 4, 0).boxes(0))
    top, left, height, width = boxes.T
    assert (height == width).all()
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 16).all() and (left + width <= 24).all()
    share = height * width / (16 * 24)
    # 8 % to all of the image, as far as a square fits: 16 * 16 of 16 * 24.
    assert 0.06 < share.min() < 0.12 and share.max() == 16 * 16 / (16 * 24)
    assert top.max() > 8 and left.max() > 16


def test_a_crop_is_its_box_resized(folder):
    crops = Crops(folder, 4, 6, 0)
    assert len(crops) == 52 and crops.labels == [0] * 12 + [1] * 40
    assert (crops.span(0), crops.span(1)) == (range(12), range(12, 52))
    boxes = crops.boxes(0) + crops.boxes(1)
    for index in (0, 5, 7, 11, 13, 51):
        top, left, height, width = boxes[index]
        image = Image.open(folder.root / folder.paths[index // 4])
        expected = image.crop((left, top, left + width, top + height)).resize((6, 6), Image.Resampling.BILINEAR)
        assert np.array_equal(np.asarray(crops.read(index)), np.asarray(expected))


def test_crops_of_an_image_depend_on_nothing_but_the_image_and_the_seed(folder):
    few, many, part = Crops(folder, 2, 4, 0), Crops(folder, 5, 8, 0), Crops(folder.taking([1, 7]), 5, 4, 0)
    assert few.boxes(0) == [box for image in range(3) for box in many.boxes(0)[5 * image : 5 * image + 2]]
    assert part.boxes(0) == many.boxes(0)[5:10] and part.boxes(1) == many.boxes(1)[20:25]
    assert Crops(folder, 5, 8, 1).boxes(0) != many.boxes(0)
    assert len(set(many.boxes(0))) > 10


def test_tiles_name_images_or_their_crops(folder):
    assert [(tile.path, tile.box) for tile in folder.tiles(0)] == [(f"a/{k}.png", None) for k in range(3)]
    crops = Crops(folder, 2, 4, 0)
    found = crops.tiles(0)
    assert [tile.path for tile in found] == ["a/0.png", "a/0.png", "a/1.png", "a/1.png", "a/2.png", "a/2.png"]
    assert [tile.box for tile in found] == crops.boxes(0)


@pytest.mark.parametrize("crop, size, before, after", [(4, 8, 2, 2), (3, 8, 2, 3), (8, 8, 0, 0)])
def test_a_crop_is_seen_in_the_centre_of_zeros(crop, size, before, after):
    seen = []
    network = Centred(torch.nn.Identity(), size)
    images = torch.randn(2, 3, crop, crop)
    seen = network(images)
    assert seen.shape == (2, 3, size, size)
    assert torch.equal(seen, F.pad(images, (before, after, before, after)))


# --- the best crops of images ----------------------------------------------------------------------------------------


def rows(*scores):
    return pd.DataFrame([(path, score) for path, score in scores], columns=["img_path", "score"])


SCORES = rows(("a", 0.9), ("b", 0.8), ("a", 0.7), ("b", 0.6), ("c", 0.5), ("c", 0.5), ("a", 0.1))


@pytest.mark.parametrize(
    "needed, kept",
    [(1, [0, 1, 4]), (3, [0, 1, 4]), (4, [0, 1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5]), (7, [0, 1, 2, 3, 4, 5, 6])],
)
def test_each_image_has_its_best_crops_and_several_only_where_images_are_few(needed, kept):
    assert best(SCORES, needed).index.tolist() == kept


def test_the_best_are_found_in_any_order():
    shuffled = SCORES.iloc[[6, 3, 5, 0, 2, 4, 1]]
    found = best(shuffled, 2)
    assert sorted(zip(found["img_path"], found["score"])) == [("a", 0.9), ("b", 0.8), ("c", 0.5)]
