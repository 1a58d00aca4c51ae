"""CIM's protocol: views of tiles, differentiable augmentation of batches, and labels that show the same again."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import snapshot
from plain_augmentation import by_hand
from students import MEAN, STD, geometry, noise_folder, protocol, small_student, stream
from utils.data import dsa
from utils.run import distributed
from utils.run.registry import with_changes
from validate.augment import Augmentation
from validate.label_writer import Writer
from validate.labels import StoredLabels
from validate.protocols import PROTOCOLS, SetFacts, recipes, resolve
from validate.targets import Teachers

TILES = dict(tiles=2, mix="none", rand_augment="none", min_scale=1.0, flip=0.0)
LINE = dict(epochs=4, batch_size=5, batch_augment="dsa", **TILES)  # of 12 images: batches of 5, 5 and 2


def draws(count=400, width=10, height=10, **changes):
    torch.manual_seed(0)
    augmentation = Augmentation(protocol(**{**TILES, **changes}), geometry())
    return [augmentation.draw(width, height) for _ in range(count)]


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes, ipc, batch", [(10, 1, 10), (10, 10, 50), (10, 50, 50), (100, 10, 100), (1000, 50, 200)]
)
def test_the_published_settings(classes, ipc, batch):
    found = resolve(PROTOCOLS["cim"], "resnet18", SetFacts(classes, ipc, classes * ipc, 32), 3)
    assert found.batch_size == batch
    assert (found.epochs, found.optimizer, found.lr, found.weight_decay) == (1000, "adamw", 0.001, 1e-4)
    assert (found.lr_schedule, found.lr_steps, found.lr_factor) == ("steps", (2 / 3, 5 / 6), 0.2)
    assert (found.loss, found.class_weight, found.mix, found.rand_augment) == ("mse", 0, "none", "none")
    assert (found.tiles, found.tile_share, found.batch_augment) == (2, 0.75, "dsa")
    assert (found.min_scale, found.max_scale, found.flip, found.shuffle_patches) == (1, 1, 0, 1)


def test_imagenet_has_fewer_epochs():
    assert recipes("imagenet1k")["cim"]["epochs"] == 300 and recipes("cifar10")["cim"]["epochs"] == 1000


def test_flags_show_in_the_name():
    assert with_changes(PROTOCOLS, "delt", {"tiles": 2, "batch_augment": "dsa"})[0] == "delt tiles=2 batch_augment=dsa"


def test_a_share_of_tiles_without_tiles_is_refused(place):
    before = snapshot(place.root)
    outcome = place.run("validate", tile_share=0.5)
    assert outcome.code == 2 and "--tile-share does nothing without --tiles set, 2 or more" in outcome.err
    assert snapshot(place.root) == before


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_three_views_in_four_show_one_tile():
    found = Counter(view[:4] for view in draws(2000))
    tiles = [(0, 0, 5, 5), (0, 5, 5, 5), (5, 0, 5, 5), (5, 5, 5, 5)]
    assert set(found) == {*tiles, (0, 0, 10, 10)}
    assert abs(found[0, 0, 10, 10] / 2000 - 0.25) < 0.05
    assert all(abs(found[tile] / 2000 - 0.1875) < 0.05 for tile in tiles)


def test_tiles_of_a_size_that_does_not_divide():
    found = {view[:4] for view in draws(tile_share=1.0, width=11, height=11)}
    assert found == {(top, left, h, w) for top, h in ((0, 6), (6, 5)) for left, w in ((0, 6), (6, 5))}


def test_crops_lie_within_a_tile():
    for top, left, height, width, _ in draws(tile_share=1.0, min_scale=0.3, max_scale=0.9):
        assert (top // 5, left // 5) == ((top + height - 1) // 5, (left + width - 1) // 5)


def test_without_tiles_nothing_more_is_drawn():
    assert draws(tiles=1, min_scale=0.5, flip=0.5) == draws(tiles=1, min_scale=0.5, flip=0.5, tile_share=0.1)
    torch.manual_seed(0)
    augmentation = Augmentation(protocol(**{**TILES, "tiles": 1}), geometry())
    assert augmentation.draw(10, 10) == (0, 0, 10, 10, 0)
    first = torch.rand(())
    torch.manual_seed(0)
    torch.rand(())  # of the flip
    assert torch.rand(()) == first


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return noise_folder(tmp_path_factory.mktemp("set"), size=10)


def same(one, other):
    names = ("images", "labels", "order", "views", "mix")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_batch_is_augmented_after_its_views(folder):
    """Each image by its own draws, by the kind of its batch."""
    kinds = set()
    for number, step in enumerate(stream(folder, **LINE).draw(range(4))):
        kind, drawn = dsa.draw(len(step.images), 0, "dsa", number // 3, number % 3)
        kinds.add(kind)
        for k, (image, index, view) in enumerate(zip(step.images, step.order.tolist(), step.views.tolist())):
            top, left, height, width, _ = view
            picture = Image.open(folder.root / folder.paths[index]).convert("RGB")
            picture = picture.crop((left, top, left + width, top + height)).resize((8, 8), Image.Resampling.BILINEAR)
            shown = torch.from_numpy((np.asarray(picture) / 255 - MEAN) / STD).permute(2, 0, 1)
            torch.testing.assert_close(image.double(), by_hand(kind, shown, drawn[k]), rtol=1e-4, atol=1e-4)
    assert len(kinds) > 2


def test_from_a_step_on_and_shown_again_it_is_the_same(folder):
    batches = stream(folder, **LINE)
    steps = list(batches.draw(range(4)))
    rest = list(batches.draw(range(4), start=5))
    assert len(rest) == 7 and all(map(same, steps[5:], rest))
    keys = [(name, step.order.tolist(), step.views.tolist()) for (name, _), step in zip(batches.keys(range(4)), steps)]
    again = [step for step, _ in batches.replay((key, step.mix, None) for key, step in list(zip(keys, steps))[4:])]
    assert len(again) == 8 and all(map(same, steps[4:], again))


def test_seeds_see_different_things(folder):
    one, other = (list(stream(folder, seed, **LINE).draw(range(2))) for seed in (0, 1))
    assert not any(map(same, one, other))


def test_of_several_processes_each_has_its_part_of_the_draws(folder, monkeypatch):
    """The draws are the batch's, whoever shows which image of it. Views differ, as streams of ranks do."""
    line = {**LINE, "tile_share": 0.0}  # whole images: views do not differ
    alone = list(stream(folder, **line).draw(range(2)))
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "get_rank", lambda: rank)
        for step, own in zip(alone, stream(folder, **line).draw(range(2)), strict=True):
            part = distributed.local_batch(range(len(step.images)))
            assert torch.equal(own.images, step.images[part]) and torch.equal(own.order, step.order[part])


def test_stored_labels_show_what_the_teacher_saw(tmp_path):
    batches = stream(noise_folder(tmp_path / "set", size=10), **LINE, loss="mse")
    teachers = Teachers(batches.geometry, ("a",), ("0",), (small_student().eval(),), (batches.geometry,))
    Writer(str(tmp_path / "labels"), teachers, None, False).save(batches)
    live, stored = list(teachers.labelled(batches)), list(StoredLabels(tmp_path / "labels", 0).labelled(batches))
    assert len(live) == len(stored) == 12
    for (step, target), (again, found) in zip(live, stored):
        assert same(step, again)
        torch.testing.assert_close(target, found, rtol=2e-3, atol=2e-3)


def test_labels_of_other_views_are_refused(place):
    line = dict(protocol="cim", epochs=2, student_arch="conv3")
    place.works("validate", **line, save_labels=place / "labels")
    loading = {**line, "load_labels": place / "labels", "teacher_path": None, "output_dir": place / "loaded"}
    place.works("validate", **loading)
    saved, loaded = (
        json.loads(next((place / name / "results").glob("*.json")).read_text())["seeds"]
        for name in ("measured", "loaded")
    )
    assert [entry["curve"] for entry in saved] == [entry["curve"] for entry in loaded]
    for change, words in (
        ({"batch_augment": "none"}, "batch_augment: dsa -> none"),
        ({"tiles": 1}, "tiles: 2 -> 1"),
        ({"tile_share": 0.5}, "tile_share: 0.75 -> 0.5"),
    ):
        outcome = place.run("validate", **{**loading, **change})
        assert outcome.code == 2 and words in outcome.err


def test_results_and_labels_of_other_protocols_are_named_as_before(place):
    place.works("validate", epochs=1, save_labels=place / "labels")
    [path] = (place / "measured" / "results").glob("*.json")
    index = json.loads((place / "labels" / "seed0" / "index.json").read_text())
    for settings in (json.loads(path.read_text())["settings"], index["settings"]):
        assert not {"tiles", "tile_share", "batch_augment", "accumulate", "teacher_statistics"} & set(settings)
