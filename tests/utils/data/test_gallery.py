"""The contact sheet and the blocks that the report's page shows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers import few, noise, tree
from utils.data import gallery
from utils.data.gallery import ImageSet
from utils.data.image_folder import ImageFolder
from utils.run.errors import UserError

RED, BLUE = (250, 20, 20), (20, 20, 250)


def solid(path, colour, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def only(*paths):
    """The thumbnails of a class of these images."""
    [block] = gallery.blocks(["ant"], [ImageSet("set", {"ant": paths})])
    return block.strips[0].thumbnails


@few
@given(st.integers(1, 2000), st.integers(2, 40))
def test_evenly_spaced_numbers(n, most):
    numbers = gallery.evenly_spaced(n, most)
    assert numbers[0] == 0 and numbers[-1] == n - 1 and len(numbers) == min(n, most)
    steps = np.diff(numbers)
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_of_many_the_first_is_shown_where_one_is_asked_for():
    assert gallery.evenly_spaced(9, 1) == [0]


@pytest.mark.parametrize("size", [8, 32, 100])
def test_a_small_image_is_enlarged_without_smoothing(tmp_path, size):
    pixels = noise(tmp_path / "a.png", 0, size)
    [thumbnail] = only(tmp_path / "a.png")
    factor = thumbnail.image.width // size
    assert thumbnail.enlarged and factor > 1 and 112 < thumbnail.image.width <= 224
    # Every stored pixel is a square of its own colour.
    assert (np.asarray(thumbnail.image) == pixels.repeat(factor, 0).repeat(factor, 1)).all()


def test_an_image_of_the_largest_size_is_shown_as_it_is(tmp_path):
    pixels = noise(tmp_path / "a.png", 0, 224)
    [thumbnail] = only(tmp_path / "a.png")
    assert not thumbnail.enlarged and (np.asarray(thumbnail.image) == pixels).all()


def test_a_large_image_is_reduced(tmp_path):
    image = Image.new("RGB", (900, 900), RED)
    image.paste(BLUE, (450, 0, 900, 900))
    image.save(tmp_path / "a.png")
    [thumbnail] = only(tmp_path / "a.png")
    pixels = np.asarray(thumbnail.image)
    assert pixels.shape == (224, 224, 3) and not thumbnail.enlarged
    assert (pixels[:, :100] == RED).all() and (pixels[:, 124:] == BLUE).all()


@pytest.mark.parametrize("size", [(50, 10), (10, 50), (900, 300)])
def test_the_square_in_the_centre_is_shown(tmp_path, size):
    image = Image.new("RGB", size, RED)
    side, left, top = min(size), (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    image.paste(BLUE, (left, top, left + side, top + side))
    image.save(tmp_path / "a.png")
    [thumbnail] = only(tmp_path / "a.png")
    assert thumbnail.image.width == thumbnail.image.height
    assert (np.asarray(thumbnail.image) == BLUE).all()


def test_which_classes_and_positions_are_shown(tmp_path):
    paths = {name: [solid(tmp_path / name / f"{k}.png", (k, 0, 0)) for k in range(7)] for name in "abcde"}
    sets = [ImageSet("one", paths, [70, 60, 50, 40, 30, 20, 10]), ImageSet("two", {name: paths[name] for name in "ce"})]
    found = list(gallery.blocks("edcba", sets, 3, 3))
    assert [block.name for block in found] == ["e", "c", "a"], "the first, the last and one between, in the order given"
    assert [[strip.title for strip in block.strips] for block in found] == [["one", "two"], ["one", "two"], ["one"]]
    for block in found:
        for strip in block.strips:
            assert [thumbnail.position for thumbnail in strip.thumbnails] == [0, 3, 6]
            assert [thumbnail.image.getpixel((0, 0))[0] for thumbnail in strip.thumbnails] == [0, 3, 6]
    first, other = found[0].strips
    assert [thumbnail.facts for thumbnail in first.thumbnails][1] == ["position 3", "40 updates"]
    assert [thumbnail.facts for thumbnail in other.thumbnails][1] == ["position 3"]


def test_more_images_than_are_known_to_have_updates(tmp_path):
    paths = [solid(tmp_path / f"{k}.png", RED) for k in range(3)]
    [block] = gallery.blocks(["a"], [ImageSet("set", {"a": paths}, [8])])
    assert [thumbnail.updates for thumbnail in block.strips[0].thumbnails] == [8, None, None]


def test_the_images_of_a_folder_are_in_the_order_of_their_names(tmp_path):
    for name in ("moth", "ant"):
        for k in (2, 0, 1):
            solid(tmp_path / name / f"00{k}_x.png", RED)
    images = ImageSet.from_folder("set", ImageFolder(tmp_path, "set"), [3, 2, 1])
    assert {name: [path.name for path in paths] for name, paths in images.paths.items()} == {
        name: ["000_x.png", "001_x.png", "002_x.png"] for name in ("ant", "moth")
    }
    assert all(path.is_file() for paths in images.paths.values() for path in paths) and images.updates == [3, 2, 1]


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png"):
        only(tmp_path / "bad.png")


# --- the picture --------------------------------------------------------------------------------------------------


@pytest.fixture
def sets(tmp_path):
    """Two classes of three images: red ones that became blue ones."""
    red, blue = (
        {name: [solid(tmp_path / kind / name / f"{k}.png", colour) for k in range(3)] for name in ("ant", "moth")}
        for kind, colour in (("start", RED), ("recovered", BLUE))
    )
    return [ImageSet("start", red), ImageSet("recovered", blue, [8, 8, 4])]


def areas(path, colour):
    """(top, left) of each area of this colour in the picture, from top to bottom and from left to right."""
    with Image.open(path) as picture:
        found = (np.asarray(picture.convert("RGB")) == colour).all(2)

    def starts(line):
        return np.flatnonzero(np.diff(np.concatenate([[False], line])) & line).tolist()

    return [(top, left) for top in starts(found.any(1)) for left in starts(found[top + 5])]


def test_starting_images_stand_above_what_became_of_them(tmp_path, sets):
    gallery.draw(tmp_path / "sheet.png", ["ant", "moth"], sets)
    red, blue = (areas(tmp_path / "sheet.png", colour) for colour in (RED, BLUE))
    assert len(red) == len(blue) == 2 * 3
    assert [left for _, left in red] == [left for _, left in blue], "each below its start"
    tops = sorted({top for top, _ in red} | {top for top, _ in blue})
    assert [top in {top for top, _ in red} for top in tops] == [True, False, True, False]
    gaps = np.diff(tops)
    assert gaps[0] == pytest.approx(gaps[2], abs=1) and gaps[1] > gaps[0] + 3, "classes stand apart"


def test_a_set_from_noise_has_one_line_a_class(tmp_path, sets):
    gallery.draw(tmp_path / "sheet.png", ["ant", "moth"], sets[1:])
    assert len(areas(tmp_path / "sheet.png", BLUE)) == 2 * 3 and areas(tmp_path / "sheet.png", RED) == []


def test_images_stand_in_order_of_position(tmp_path):
    colours = [(200, 20 * k, 10) for k in range(10)]
    paths = [solid(tmp_path / f"{k}.png", colour) for k, colour in enumerate(colours)]
    gallery.draw(tmp_path / "sheet.png", ["ant"], [ImageSet("recovered", {"ant": paths})])
    places = [areas(tmp_path / "sheet.png", colour) for colour in colours]
    assert [len(found) for found in places] == [1] * 10
    assert [found[0][1] for found in places] == sorted(found[0][1] for found in places)


def test_a_sheet_of_many_classes_and_images_stays_small(tmp_path):
    classes = [f"class{k}" for k in range(40)]
    paths = {name: [solid(tmp_path / f"{name}.png", BLUE)] * 60 for name in classes}
    gallery.draw(tmp_path / "sheet.png", classes, [ImageSet("recovered", paths)])
    assert len(areas(tmp_path / "sheet.png", BLUE)) == 8 * 10
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.format == "PNG" and max(picture.size) < 2000


def test_the_same_images_give_the_same_bytes(tmp_path, sets):
    for name in ("a.png", "new/b.png"):
        gallery.draw(tmp_path / name, ["ant", "moth"], sets)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
    assert tree(tmp_path / "new") == ["b.png"]


def test_what_heads_the_columns_changes_with_the_updates(tmp_path, sets):
    gallery.draw(tmp_path / "a.png", ["ant"], sets)
    gallery.draw(tmp_path / "b.png", ["ant"], [sets[0], ImageSet("recovered", sets[1].paths, [9, 9, 9])])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_class_may_have_any_name(tmp_path):
    names = ["$_{", "a\\b", "<b>&", "x" * 80]
    paths = {name: [solid(tmp_path / "a.png", BLUE)] for name in names}
    gallery.draw(tmp_path / "sheet.png", names, [ImageSet("recovered", paths, [1])])
    assert len(areas(tmp_path / "sheet.png", BLUE)) == 4


def test_nothing_is_left_of_a_sheet_that_fails(tmp_path, sets):
    (tmp_path / "out").mkdir()
    sets[1].paths["moth"][2].write_bytes(b"no image")
    with pytest.raises(UserError, match="moth"):
        gallery.draw(tmp_path / "out" / "sheet.png", ["ant", "moth"], sets)
    assert tree(tmp_path / "out") == []
