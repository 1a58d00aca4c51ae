"""Collages: pixel by pixel, and the command lines that make them."""

import csv
import json
import math
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD, images, snapshot
from helpers import noise
from plain_teacher import logits_of
from ranking import collage, crops
from ranking.collage import Collages, arranged
from ranking.criteria import made
from refusals import refused
from utils.data import tiles as collage_tiles
from utils.data.tiles import Tile
from utils.run.errors import UserError
from utils.run.shared_work import SharedWork

TILE = INPUT // 2
RDED = dict(criterion="top", crops=3, tiles=2, ipc=2)


def rows_of(path, name):
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if row["class"] == name]


def box_of(row):
    return tuple(int(row[name]) for name in ("top", "left", "height", "width"))


def cut(path, box, size):
    """uint8 (size, size, 3): a box of an image, by Pillow alone."""
    top, left, height, width = box
    image = Image.open(path).crop((left, top, left + width, top + height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def pixels(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


# --- the picture -----------------------------------------------------------------------------------------------------


def test_tile_k_of_image_j_is_rank_k_times_the_images_plus_j():
    ranked = [Tile(str(rank)) for rank in range(12)]
    names = [[tile.path for tile in image] for image in arranged(ranked, 4)]
    assert names == [["0", "3", "6", "9"], ["1", "4", "7", "10"], ["2", "5", "8", "11"]]


def test_what_is_too_few_for_all_gives_fewer_images_or_is_repeated():
    ranked = [Tile(str(rank)) for rank in range(6)]
    assert [[tile.path for tile in image] for image in arranged(ranked, 4)] == [["0", "1", "2", "3"]]
    assert [[tile.path for tile in image] for image in arranged(ranked[:3], 4)] == [["0", "1", "2", "0"]]


@pytest.mark.parametrize("size, tiles", [(8, 2), (9, 2), (11, 3)])
def test_every_pixel_of_a_collage_of_crops(tmp_path, size, tiles):
    """Crops of size // tiles pixels, resized by nearest neighbour where pixels are left over."""
    for number in range(3):
        noise(tmp_path / "c" / f"{number}.png", number, 20)
    boxes = [(k % 4, k % 3, 5 + k % 7, 5 + k % 7) for k in range(tiles**2)]
    chosen = [Tile(f"c/{k % 3}.png", box) for k, box in enumerate(boxes)]
    found = Collages(tmp_path, size, tiles).compose(chosen)
    assert found.shape == (3, size, size) and found.dtype == torch.uint8

    side, rest = divmod(size, tiles)
    edges = [side + 1 if k < rest else side for k in range(tiles)]
    starts = [sum(edges[:k]) for k in range(tiles)]
    for k, tile in enumerate(chosen):
        source = cut(tmp_path / tile.path, tile.box, side)
        row, column = divmod(k, tiles)
        for y in range(edges[row]):
            for x in range(edges[column]):
                expected = source[y * side // edges[row], x * side // edges[column]]
                assert found[:, starts[row] + y, starts[column] + x].tolist() == expected.tolist()


def test_every_pixel_of_a_collage_of_whole_images(tmp_path):
    """Each at the full size, then every second row and column of it (CIM)."""
    sources = [noise(tmp_path / "c" / f"{k}.png", k, 8) for k in range(4)]
    found = Collages(tmp_path, 8, 2).compose([Tile(f"c/{k}.png") for k in range(4)])
    for k, source in enumerate(sources):
        row, column = divmod(k, 2)
        part = found[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0)
        assert np.array_equal(part.numpy(), source[::2, ::2])


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(place):
    """Class ant has three images: each stands with several crops where more than three tiles are chosen."""
    for path in sorted((place.train / "ant").iterdir())[3:]:
        path.unlink()
    return place


def test_collages_by_hand(small):
    """RDED: scores of padded crops, the best of each image, rank order, tiles, pixels and manifest."""
    small.works("ranking", **RDED)
    record = manifest(small / "selected")
    assert record["finished"] and record["train_dir"] == str(small.train)
    for name in CLASSES:
        rows = rows_of(small / "ranking.csv", name)
        number = len(list((small.train / name).iterdir()))
        assert len(rows) == 3 * number

        # The score is the probability of the class for the crop in the centre of zeros.
        batch = np.zeros((len(rows), INPUT, INPUT, 3))
        for k, row in enumerate(rows):
            crop = cut(small.train / row["img_path"], box_of(row), TILE)
            start = (INPUT - TILE) // 2
            batch[k, start : start + TILE, start : start + TILE] = (crop / 255 - MEAN) / STD
        said = logits_of(small.teacher, torch.tensor(batch).permute(0, 3, 1, 2)).softmax(1)[:, CLASSES.index(name)]
        assert [float(row["score"]) for row in rows] == pytest.approx(said.tolist(), abs=1e-5)

        # Low cross-entropy is a high score. 8 tiles of 3 images: three of each, of 7 images two of each.
        rows.sort(key=lambda row: -float(row["score"]))
        kept, counts = [], {}
        for row in rows:
            counts[row["img_path"]] = counts.get(row["img_path"], 0) + 1
            if counts[row["img_path"]] <= math.ceil(8 / number):
                kept.append((row["img_path"], box_of(row)))
        ranked = kept[:8]

        files = sorted((small / "selected" / name).iterdir())
        stems = [ranked[j][0].split("/")[1].removesuffix(".png") for j in range(2)]
        assert [file.name for file in files] == [f"{j:03d}_{stem}.png" for j, stem in enumerate(stems)]
        for j, file in enumerate(files):
            own = [ranked[k * 2 + j] for k in range(4)]
            found = pixels(file)
            assert found.shape == (INPUT, INPUT, 3)
            for k, (path, box) in enumerate(own):
                y, x = TILE * (k // 2), TILE * (k % 2)
                assert np.array_equal(found[y : y + TILE, x : x + TILE], cut(small.train / path, box, TILE))
            tiles = record["tiles"][f"{name}/{file.name}"]
            assert [(tile["path"], tuple(tile["box"])) for tile in tiles] == own


def test_the_manifest_leads_to_the_originals(small):
    small.works("ranking", **RDED)
    train_dir, found = collage_tiles.of_collages(small / "selected")
    assert train_dir == small.train and set(found) == set(images(small / "selected"))
    for path, tiles in found.items():
        collage = pixels(small / "selected" / path)
        for k, tile in enumerate(tiles):
            y, x = TILE * (k // 2), TILE * (k % 2)
            part = np.asarray(collage_tiles.cut(Image.open(train_dir / tile.path), tile.box, TILE))
            assert np.array_equal(collage[y : y + TILE, x : x + TILE], part)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop("tiles"),
        lambda record: record.pop("train_dir"),
        lambda record: record["tiles"].update({"ant/000_x.png": []}),
        lambda record: record["tiles"].update({"ant/000_x.png": [{"path": "ant/x.png", "box": [0, 0, 0, 3]}]}),
        lambda record: record["tiles"].update({"ant/000_x.png": [{"path": "ant/x.png", "box": [0, 0, 3]}]}),
        lambda record: record["tiles"].update({"ant/000_x.png": [{"path": 3, "box": None}]}),
        lambda record: record.update(tiles=[1, 2]),
    ],
)
def test_a_manifest_without_tiles_is_named(small, spoil):
    small.works("ranking", **RDED)
    record = manifest(small / "selected")
    spoil(record)
    (small / "selected" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="names no tiles"):
        collage_tiles.of_collages(small / "selected")


def test_candidates_alone_are_copied_as_they_are(place):
    place.works("ranking", candidates=5, ipc=5, ranking_file=None, criterion="top")
    copies = {}
    for path, content in images(place / "selected").items():
        copies.setdefault(path.split("/")[0], []).append(content)
    for name in CLASSES:
        originals = {path.read_bytes() for path in (place.train / name).iterdir()}
        assert len(set(copies[name])) == 5 and set(copies[name]) < originals
    assert manifest(place / "selected")["settings"]["candidates"] == 5


@pytest.mark.parametrize(
    "times, count, flags",
    [
        ("3x", 6, dict(ipc=2)),
        ("1x", 4, dict(ipc=1, tiles=2)),
        ("2x", 2, dict(ipc=2, crops=3)),
        ("3+", 3, dict(ipc=2)),
        ("3+", 4, dict(ipc=1, tiles=2)),
        ("1+", 2, dict(ipc=4, crops=3)),
    ],
)
def test_candidates_by_what_is_needed(place, times, count, flags):
    """Times of it, or at least so many. With crops: of the images whose crops suffice."""
    line = dict(criterion="top", ranking_file=None, **flags)
    place.works("ranking", **line, candidates=times, output_dir=place / "times")
    place.works("ranking", **line, candidates=count, output_dir=place / "count")
    found = images(place / "times")
    assert found and found == images(place / "count")
    assert manifest(place / "times")["settings"]["candidates"] == count


@pytest.mark.parametrize("text", ["0x", "x", "2.5x", "-1x", "2xx", "x2", "+", "0+", "2x+"])
def test_what_are_no_times_is_refused(place, text):
    refused(place, "ranking", "--candidates", candidates=text, ipc=2)


def test_candidates_of_a_ranking_file_are_the_same_as_without_one(place):
    line = dict(candidates=4, ipc=3, criterion="top")
    place.works("ranking", **line, ranking_file=None)
    place.works("ranking", **line, output_dir=place / "by_file")
    assert len(rows_of(place / "ranking.csv", "ant")) == 7, "the file holds all images"
    assert images(place / "by_file") == images(place / "selected")


def test_whole_images_are_tiled_in_the_order_of_their_scores(place):
    place.works("ranking", criterion="top", tiles=2, ipc=1)
    for name in CLASSES:
        [collage] = (place / "selected" / name).iterdir()
        ranked = [row["img_path"] for row in rows_of(place / "ranking.csv", name)][:4]
        entries = manifest(place / "selected")["tiles"][f"{name}/{collage.name}"]
        assert [(entry["path"], entry["box"]) for entry in entries] == [(path, None) for path in ranked]
        for k, path in enumerate(ranked):
            image = Image.open(place.train / path).resize((INPUT, INPUT), Image.Resampling.BILINEAR)
            y, x = TILE * (k // 2), TILE * (k % 2)
            assert np.array_equal(pixels(collage)[y : y + TILE, x : x + TILE], np.asarray(image)[::2, ::2])


def test_one_tile_an_image_is_a_crop_at_the_full_size(place):
    place.works("ranking", criterion="top", crops=2, ipc=3)
    record = manifest(place / "selected")
    for path, [tile] in record["tiles"].items():
        assert np.array_equal(pixels(place / "selected" / path), cut(place.train / tile["path"], tile["box"], INPUT))
    assert len({tile["path"] for [tile] in record["tiles"].values()}) == 9, "one crop an image"


@pytest.mark.parametrize("criterion", ["medium", "min", "random", "herding", "k-center"])
def test_every_criterion_chooses_among_crops(place, criterion):
    line = {**RDED, "criterion": criterion, "ranking_file": None}
    place.works("ranking", **line)
    found = manifest(place / "selected")
    assert made(str(place / "selected")) == f"--criterion {criterion} --crops 3 --tiles 2", "as scripts ask for it"
    for name in CLASSES:
        tiles = [tile for path, tiles in found["tiles"].items() if path.startswith(name) for tile in tiles]
        assert len(tiles) == 8 and len({(tile["path"], tuple(tile["box"])) for tile in tiles}) == 8
        assert all(tile["path"].startswith(f"{name}/") for tile in tiles)
    before = snapshot(place.root)
    assert "complete" in place.works("ranking", **line)
    assert snapshot(place.root) == before


def test_random_collages_need_no_teacher_but_a_size(place):
    line = dict(teacher_path=None, ranking_file=None, criterion="random", crops=2, tiles=2, ipc=1)
    place.works("ranking", **line, input_size=12)
    assert {pixels(place / "selected" / path).shape for path in images(place / "selected")} == {(12, 12, 3)}
    place.works("ranking", **line, output_dir=place / "own")
    assert {pixels(place / "own" / path).shape for path in images(place / "own")} == {(16, 16, 3)}


def test_the_seed_draws_candidates_and_crops(place):
    found = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        place.works("ranking", **RDED, candidates=5, seed=seed, ranking_file=None, output_dir=place / folder)
        found[folder] = images(place / folder)
    assert found["a"] == found["b"] != found["c"]


def test_a_ranking_file_of_crops_serves_again_without_a_teacher(place):
    place.works("ranking", **RDED)
    before = (place / "ranking.csv").read_bytes()
    place.works("ranking", **RDED, teacher_path=None, input_size=INPUT, output_dir=place / "again")
    assert images(place / "again") == images(place / "selected") and (place / "ranking.csv").read_bytes() == before
    place.works("ranking", **{**RDED, "ipc": 1}, output_dir=place / "fewer")
    assert len(images(place / "fewer")) == 3


def test_scores_of_crops_and_of_whole_images_are_not_mixed_up(place):
    whole = place / "whole.csv"
    place.works("ranking", **RDED, output_dir=None)
    refused(place, "ranking", "crops: 3 -> None")
    place.works("ranking", ranking_file=whole, output_dir=None)
    refused(place, "ranking", "crops: None -> 3", ranking_file=whole, **RDED)
    refused(place, "ranking", "crops: 3 -> 4", **{**RDED, "crops": 4})
    refused(place, "ranking", "seed: 0 -> 1", **RDED, seed=1)
    (place / "ranking.csv.json").unlink()
    (place / "whole.csv.json").unlink()
    refused(place, "ranking", "scores of crops", "whole images are asked for", "--crops")
    refused(place, "ranking", "scores of whole images", "leave out --crops", ranking_file=whole, **RDED)


def test_scores_of_other_crops_are_replaced_if_that_is_asked_for(place):
    place.works("ranking", **RDED)
    before = (place / "ranking.csv").read_bytes()
    place.works("ranking", **{**RDED, "tiles": 1}, overwrite=True)
    assert (place / "ranking.csv").read_bytes() != before
    assert images(place / "selected") and manifest(place / "selected")["settings"]["tiles"] == 1


@pytest.mark.parametrize("value", ["", "-1", "2.5", "x"])
def test_a_place_that_is_none_is_named(place, value):
    place.works("ranking", **RDED, output_dir=None)
    lines = (place / "ranking.csv").read_text().splitlines()
    assert lines[0] == "img_path,class,score,top,left,height,width"
    lines[2] = ",".join([*lines[2].split(",")[:3], value, *lines[2].split(",")[4:]])
    (place / "ranking.csv").write_text("\n".join(lines) + "\n")
    refused(place, "ranking", "line 3", f"top '{value}'", **RDED)


@pytest.mark.parametrize("owner, name", [(SharedWork, "save"), (collage, "save_image")], ids=["scores", "collages"])
def test_killed_after_the_first_piece_the_same_command_ends_well(place, monkeypatch, owner, name):
    line, function = {**RDED, "batch_size": 3}, getattr(owner, name)
    place.works("ranking", **line, output_dir=place / "whole", ranking_file=place / "whole.csv")

    def then_die(*args, **options):
        function(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(owner, name, then_die)
    child = place.fork("ranking", **line)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    place.works("ranking", **line)
    assert images(place / "selected") == images(place / "whole")
    assert (place / "ranking.csv").read_bytes() == (place / "whole.csv").read_bytes()
    assert not list(place.root.rglob(".*"))


def test_lost_and_damaged_collages_are_made_again(place):
    place.works("ranking", **RDED)
    whole = images(place / "selected")
    first, second, *_ = [place / "selected" / path for path in whole]
    first.unlink()
    second.write_bytes(b"damaged")
    place.works("ranking", **RDED)
    assert images(place / "selected") == whole


def test_classes_with_too_few_images(small):
    line = {**RDED, "ipc": 3}
    refused(small, "ranking", "'ant' has 3 images", "12 tiles", "--ipc 2", "--crops", "--short-classes", **line)
    small.works("ranking", **line, short_classes="keep")
    counts = [len([path for path in images(small / "selected") if path.startswith(name)]) for name in CLASSES]
    assert counts == [2, 3, 3]
    small.works("ranking", **line, short_classes="repeat", output_dir=small / "repeated")
    assert len(images(small / "repeated")) == 9


def test_too_few_candidates_are_refused_at_once(place):
    refused(place, "ranking", "--candidates 3 are too few: 8", "give 8 or more", candidates=3, tiles=2, ipc=2)


def test_two_processes_share_the_crops(place):
    """Each takes pieces; the one that finds all done puts the collages together."""
    line = {**RDED, "batch_size": 3}  # of 63 crops: six pieces
    place.works("ranking", **line, output_dir=place / "whole", ranking_file=place / "whole.csv")
    child = place.fork("ranking", **line)
    assert place.run("ranking", {"RANK": "1", "WORLD_SIZE": "2"}, **line).code == 0
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    place.works("ranking", **line)
    assert images(place / "selected") == images(place / "whole")
    assert (place / "ranking.csv").read_bytes() == (place / "whole.csv").read_bytes()


def test_processes_that_are_not_forked_can_load_crops():
    resize = pickle.loads(pickle.dumps(crops.as_they_are(8)))
    image = Image.new("RGB", (8, 8))
    assert resize(image) is image
