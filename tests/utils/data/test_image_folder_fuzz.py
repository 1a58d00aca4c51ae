"""Image folders of any names and bytes: read, or refused in one line."""

import os
import shutil

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing import damaged, fuzzed, refused_or
from helpers import noise
from utils.data.formats import is_hidden
from utils.data.image_folder import ImageFolder

NAMES = st.text(st.characters(exclude_characters="/\x00", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
# None stands for a good image; names are whatever a file system takes.
FILES = st.dictionaries(NAMES.map(lambda name: f"{name}.png") | NAMES, st.binary(max_size=40) | st.none(), max_size=3)


def fresh(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    return root


def put(root, folders):
    """Returns the pixels of a good image."""
    pixels = noise(root.parent / "good.png", 0)
    for name, files in folders.items():
        (root / name).mkdir()
        for file, content in files.items():
            if content is None:
                shutil.copy(root.parent / "good.png", root / name / file)
            else:
                (root / name / file).write_bytes(content)
    return pixels


@settings(fuzzed, max_examples=80)
@given(st.dictionaries(NAMES, FILES, max_size=3))
def test_image_folders_of_anything(tmp_path_factory, folders):
    root = fresh(tmp_path_factory, "folder of anything")
    put(root, folders)

    def read():
        folder = ImageFolder(root, "--train-dir")
        assert len(folder.load()) == len(folder) == len(set(folder.paths))
        return [folder.read(index).size for index in range(len(folder))]

    found = refused_or(read)
    assert isinstance(found, str) or set(found) == {(8, 8)}, "no other image than the good ones"


@settings(fuzzed, max_examples=60)
@given(
    st.dictionaries(
        NAMES.filter(lambda name: not is_hidden(name)), st.sets(NAMES, min_size=1, max_size=3), min_size=1, max_size=3
    )
)
def test_good_images_are_read_whatever_their_names(tmp_path_factory, names):
    root = fresh(tmp_path_factory, "folder of good images")
    folders = {name: {f"x{file}.png": None for file in files} for name, files in names.items()}
    pixels = put(root, folders)
    folder = ImageFolder(root, "--train-dir")
    folder.load()
    assert folder.classes == sorted(folders) and set(folder.paths) == {
        f"{name}/{file}" for name in folders for file in folders[name]
    }
    for index, path in enumerate(folder.paths):
        assert folder.classes[folder.labels[index]] == path.split("/")[0]
        assert np.array_equal(np.asarray(folder.read(index)), pixels)


@settings(fuzzed, max_examples=80)
@given(st.sampled_from([".png", ".jpg", ".bmp", ".webp", ".gif", ".tif"]), st.booleans(), st.data())
def test_damaged_images(tmp_path_factory, suffix, kept, data):
    root = fresh(tmp_path_factory, "damaged images")
    path = root / "a" / f"x{suffix}"
    pixels = noise(path, 0, 12)

    def read():
        folder = ImageFolder(root, "--train-dir")
        folder.load() if kept else folder.check()
        return np.asarray(folder.read(0))

    if suffix in (".png", ".bmp", ".tif"):
        assert np.array_equal(read(), pixels)
    else:
        assert read().shape == pixels.shape
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = refused_or(read)
    assert isinstance(found, np.ndarray) or os.fspath(path) in found
