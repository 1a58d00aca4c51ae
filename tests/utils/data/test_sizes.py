"""Scripts and estimates look at an ImageFolder as the stages do: the same classes, images and input size."""

import pytest

from benchmarks import estimate
from helpers import gray
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


def test_a_link_that_leads_back_up_ends(small):
    for number in range(3):
        (small / "b" / f"up{number}").symlink_to(small)
    with pytest.raises(UserError, match="b/up0: is a link that leads back"):
        estimate.of_folder(small, None, 32)
