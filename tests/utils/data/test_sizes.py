"""Scripts and estimates look at an ImageFolder as the stages do: the same classes, images and input size."""

import pytest

from benchmarks import estimate
from conftest import PIXELS
from helpers import gray, noise
from recover import needs
from utils.data import image_folder, input_size
from utils.data.image_folder import ImageFolder
from utils.data.sizes import common_size, size_at_a_glance
from utils.run.errors import UserError


@pytest.fixture
def small(tmp_path):
    """Two classes of 32 pixels, the images of one a folder down; a thing beside each of them that is no image."""
    for name in ("a/1.png", "a/2.png", "b/images/1.png"):
        gray(tmp_path / name, 9, size=32)
    (tmp_path / "a" / "notes.txt").write_text("of three images")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir/x.jpg", "#recycle/x.png", ".cache/x.png"),  # beside the classes
        *("b/@eaDir/x.jpg", "b/.cache/x.png", "b/images/.0.png"),  # within one
    ],
)
def test_what_is_hidden_is_no_image(small, name):
    gray(small / name, 9, size=300)
    folder = ImageFolder(small, "--train-dir")
    assert size_at_a_glance(small) == common_size(folder.load()) == 32
    assert estimate.of_folder(small, small, None) == estimate.Images(classes=2, size=32, train=3, test=3)


def test_a_file_that_is_not_taken_as_an_image_tells_no_size(small):
    gray(small / "x.png", 9, size=300)
    (small / "x.png").rename(small / "a" / "0.raw")
    assert size_at_a_glance(small) == common_size(ImageFolder(small, "--train-dir").load()) == 32


def test_a_few_larger_images_do_not_decide_for_all_and_are_said(place):
    gray(place.train / "ant" / "0.png", 9, size=300)  # the first of its class, and one of 22
    said = place.works("squeeze", input_size=None, epochs=1, evaluations=1)
    assert f"(cifar stem, {PIXELS} px)" in said
    assert f"--train-dir {place.train}: inputs of {PIXELS} pixels; 1 of 22 is larger; --input-size" in said
    assert estimate.of_folder(place.train, None, None).size == PIXELS
    assert "--tiles 1" in needs.needs("rded", str(place.train)).ranking, "as for small images"
    for number in range(3):
        gray(place.train / "ant" / f"larger{number}.png", 9, size=300)
    assert "larger;" not in (said := place.works("squeeze", input_size=None, epochs=1, arch="resnet18", overwrite=True))
    assert "(imagenet stem, 224 px)" in said


def test_headers_tell_the_size(small):
    cut = small / "b" / "cut.png"
    noise(cut, 0, size=32)
    cut.write_bytes(cut.read_bytes()[:-1000])  # which the stages find where they decode all
    assert input_size.of_images(small, "--train-dir") == (32, "the images")
    cut.write_bytes(b"I am no image")
    with pytest.raises(UserError, match="b/cut.png: cannot be read"):
        input_size.of_images(small, "--train-dir")


def test_every_image_is_decoded_once_where_nothing_says_the_input_size(place, monkeypatch):
    read, decoded = image_folder.read_rgb, []
    monkeypatch.setattr(image_folder, "read_rgb", lambda path: decoded.append(path) or read(path))
    line = dict(teacher_path=None, student_arch="conv3", protocol="hard")
    assert f"assumed {PIXELS} (from the images in {place.val})" in place.works("validate", **line)
    assert sorted(decoded) == sorted([*place.val.glob("*/*.png"), *place.init.glob("*/*.png")])


def test_a_link_that_leads_back_up_ends(small):
    for number in range(3):
        (small / "b" / f"up{number}").symlink_to(small)
    with pytest.raises(UserError, match="b/up0: is a link that leads back"):
        estimate.of_folder(small, None, 32)
