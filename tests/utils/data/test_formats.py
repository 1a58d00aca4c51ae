"""Which files of a folder are images of the data set, and what is said of the others."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import gray, noise
from utils.data.image_folder import ImageFolder
from utils.data.images import MAX_PIXELS, probe, read_rgb, resize_for_test, resize_whole, size_of
from utils.run.errors import UserError


@pytest.mark.parametrize(
    "ending, kind",
    [
        *((ending, "JPEG") for ending in (".jfif", ".jpe", ".JPG", ".jpeg", ".Jif")),
        *((".avif", "AVIF"), (".jp2", "JPEG2000"), (".j2k", "JPEG2000"), (".tga", "TGA"), (".webp", "WEBP")),
        *((".pbm", "PPM"), (".apng", "PNG"), (".gif", "GIF"), (".dib", "DIB"), (".pcx", "PCX")),
    ],
)
def test_endings_that_are_taken(tmp_path, capsys, ending, kind):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 12), (250, 250, 250)).save(tmp_path / f"a/x{ending}", kind)
    folder = ImageFolder(tmp_path, "--train-dir")
    assert folder.paths == [f"a/x{ending}"] and folder.load() == [(16, 12)]
    assert np.asarray(folder.read(0)).min() > 240
    assert capsys.readouterr().out == ""


def test_files_that_could_be_images_are_counted_in_one_line(tmp_path, capsys):
    gray(tmp_path / "a/0.png", 1)
    gray(tmp_path / "b/0.png", 1)
    for name in ("a/photo.HEIC", "b/raw.cr2", "b/x.svg"):
        (tmp_path / name).write_bytes(b"of another format")
    shutil.copy(tmp_path / "a/0.png", tmp_path / "a/no_ending")
    shutil.copy(tmp_path / "a/0.png", tmp_path / "b/0.png.1")
    for name in ("a/notes.txt", "b/Makefile", "b/x.json", "a/Thumbs.db", "a/.DS_Store", "a/._0.png"):
        (tmp_path / name).write_bytes(b"no image")
    assert ImageFolder(tmp_path, "--train-dir").paths == ["a/0.png", "b/0.png"]
    [line] = capsys.readouterr().out.splitlines()
    assert f"--train-dir {tmp_path}: 5 files left out" in line and "a/no_ending" in line
    ImageFolder(tmp_path, "--train-dir")
    assert capsys.readouterr().out == "", "said once"


def test_what_systems_leave_behind_is_no_part_of_a_data_set(tmp_path, capsys):
    gray(tmp_path / "a/0.png", 1)
    gray(tmp_path / "a/more/deep/1.png", 1)
    left = ["@eaDir", "__MACOSX", ".ipynb_checkpoints", ".git", "#recycle", "$RECYCLE.BIN"]
    for name in left:
        for folder in ("", "a", "a/more/deep"):
            gray(tmp_path / folder / name / "0.png", 1)
            gray(tmp_path / folder / name / "inner" / "0.png", 1)
    (tmp_path / "a/Thumbs.db").mkdir()
    gray(tmp_path / "a/Thumbs.db/0.png", 1)
    folder = ImageFolder(tmp_path, "--train-dir")
    assert folder.classes == ["a"] and folder.paths == ["a/0.png", "a/more/deep/1.png"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("where", [b"a/caf\xe9.png", b"caf\xe9/0.png", b"a/caf\xe9/0.png"])
def test_a_name_that_is_no_utf_8_is_refused_at_once(tmp_path, where):
    gray(tmp_path / "a/0.png", 1)
    path = os.path.join(os.fsencode(tmp_path), where)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(os.fsencode(tmp_path / "a/0.png"), path)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    with pytest.raises(UserError, match=r"caf\\xe9.* is not UTF-8") as error:
        ImageFolder(tmp_path, "--train-dir")
    str(error.value).encode()  # it can be printed


def test_the_limit_of_pixels_is_raised_by_a_variable(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    Image.new("1", (10_010, 10_000)).save(path)
    assert 10_010 * 10_000 > MAX_PIXELS
    for read in (size_of, probe, read_rgb):
        with pytest.raises(UserError, match="x.png: .*DELT_MAX_PIXELS=100100000 in the environment"):
            read(path)
    monkeypatch.setenv("DELT_MAX_PIXELS", "100100000")
    assert size_of(path) == probe(path) == (10_010, 10_000)
    monkeypatch.setenv("DELT_MAX_PIXELS", "lots")
    with pytest.raises(UserError, match="DELT_MAX_PIXELS=lots"):
        size_of(path)


def test_pillow_s_own_limit_is_not_in_the_way(tmp_path, monkeypatch, recwarn):
    path = tmp_path / "x.png"
    Image.new("1", (20_000, 10_000)).save(path)  # more than twice Pillow's limit, which ends there
    monkeypatch.setenv("DELT_MAX_PIXELS", "200_000_000")
    assert probe(path) == (20_000, 10_000) and not recwarn.list


@pytest.mark.parametrize("resize, longer", [(resize_for_test, 256), (resize_whole, 224)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_strip_is_cropped_before_it_is_enlarged(resize, longer, turned, monkeypatch):
    """1 x 20,000 pixels: as a whole it would be 1.3 billion pixels at a shorter side of 256."""
    sizes = []
    original = Image.Image.resize

    def watched(self, size, *args, **kwargs):
        sizes.append(size[0] * size[1])
        return original(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    values = np.zeros((20_000, 1, 3), np.uint8)
    values[10_000:] = 200  # the lower half
    image = Image.fromarray(values.swapaxes(0, 1) if turned else values)
    found = np.asarray(resize(224)(image))[..., 0]
    found = found.T if turned else found
    assert found.shape == (224, 224) and sizes and max(sizes) <= 5 * longer**2
    # The edge lies in the centre, blurred over the `longer` pixels that one pixel becomes.
    assert (found == found[:, :1]).all()
    assert np.abs(found[:, 0] - 200 * (0.5 + (np.arange(224) - 111.5) / longer)).max() < 3


@pytest.mark.parametrize("size", [(40, 640), (640, 40), (33, 50)])
def test_images_that_are_no_strips_are_resized_as_before(tmp_path, size):
    from torchvision.transforms import v2

    noise(tmp_path / "x.png", 0, 640)
    image = read_rgb(tmp_path / "x.png").crop((0, 0, *size))
    plain = v2.Compose([v2.Resize(72), v2.CenterCrop(64)])(image)
    assert np.array_equal(np.asarray(resize_for_test(64)(image)), np.asarray(plain))
