"""The layouts that data sets are published in: LAYOUTS names a reader for each.

A reader takes a folder and the data set, and returns its Splits, or None if the folder is laid out otherwise. It raises
UserError if the layout is the right one and the content is damaged or incomplete.
"""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import zlib
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from utils.data.datasets import DataSet
from utils.data.formats import folders_in, is_image
from utils.run.errors import UserError, first_line

# The images of a class: their folder, a list of files, or a list of uint8 arrays (H, W, 3).
Images = Path | list[Path] | list[np.ndarray]
Splits = dict[str, dict[str, Images]]  # {"train": {class: images}, "val": {class: images}}


def image_folder(folder: Path, dataset: DataSet) -> Splits | None:
    """train/CLASS/ and val/CLASS/ (or test/CLASS/). Of a larger set, only the data set's classes."""
    test = next((folder / name for name in ("val", "test") if (folder / name).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        return None
    return {"train": _class_folders(folder / "train", dataset.only), "val": _class_folders(test, dataset.only)}


def _class_folders(split: Path, only: Sequence[str] = ()) -> dict[str, Path]:
    """{class: its folder of images}, all of them or the classes `only`."""
    folders = {d.name: d for d in folders_in(split) if not only or d.name in only}
    missing = sorted(set(only) - set(folders))
    if (missing or not folders) and any(map(is_image, split.iterdir())):
        raise UserError(
            f"{split} holds images, not one folder per class: sort them into folders first (for ImageNet's "
            "validation images the script valprep.sh is commonly used)"
        )
    if missing:
        raise UserError(f"{split} lacks {len(missing)} of the {len(only)} classes, the first is {missing[0]}")
    folders = {name: d / "images" if (d / "images").is_dir() else d for name, d in folders.items()}
    for folder in folders.values():
        if not any(map(is_image, folder.iterdir())):
            raise UserError(f"the class folder {folder} holds no images")
    return folders


def tiny_imagenet(folder: Path, dataset: DataSet) -> Splits | None:
    """train/WNID/images/*.JPEG, and val/images/*.JPEG with their classes in val/val_annotations.txt."""
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (folder / "val" / "images").is_dir():
        return None
    val: dict[str, list[Path]] = {}
    for name, wnid in sorted(_annotated(annotations)):
        image = folder / "val" / "images" / name
        if not image.is_file():
            raise UserError(f"{image} is missing, and {annotations.name} lists it")
        val.setdefault(wnid, []).append(image)
    return {"train": _class_folders(folder / "train"), "val": val}


def _annotated(path: Path) -> Iterator[tuple[str, str]]:
    """The name and the class of each image in a file of annotations."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        words = line.decode("utf-8", "replace").split("\t")
        if len(words) < 2 or not all(words[:2]):
            raise UserError(
                f"{path}, line {number}: names no image and its class, with a tab between them; fetch the file again"
            )
        yield words[0], words[1]


class _ArraysOnly(pickle.Unpickler):
    """CIFAR is published as pickles, which can hold any code: this reads arrays and plain values only."""

    allowed = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _entries(path: Path, *names: bytes) -> list[Any]:
    """What one of CIFAR's files has under these names."""
    try:
        with open(path, "rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a batch of CIFAR: {first_line(error)}") from error
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise UserError(f"{path} cannot be read as a batch of CIFAR: it lacks {missing[0].decode()}; fetch it again")
    return [content[name] for name in names]


# The file of the labels' names: the names' key, the labels' key, and the batches of each split.
_CIFAR = {
    "batches.meta": (
        b"label_names",
        b"labels",
        {"train": [f"data_batch_{k}" for k in range(1, 6)], "val": ["test_batch"]},
    ),
    "meta": (b"fine_label_names", b"fine_labels", {"train": ["train"], "val": ["test"]}),
}


def cifar(folder: Path, dataset: DataSet) -> Splits | None:
    """CIFAR's "python version": pickled batches of flat (3 * 32 * 32) images, with labels and the labels' names."""
    meta = next((name for name in _CIFAR if (folder / name).is_file()), None)
    if meta is None:
        return None
    names, labels, batches_of = _CIFAR[meta]
    classes = [name.decode() for name in _entries(folder / meta, names)[0]]
    splits = {}
    for split, files in batches_of.items():
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise UserError(f"{folder} lacks {missing[0]}")
        batches = [_entries(folder / file, b"data", labels) for file in files]
        images = np.concatenate([np.asarray(data) for data, _ in batches]).reshape(-1, 3, 32, 32)
        splits[split] = _by_class(images.transpose(0, 2, 3, 1), [y for _, own in batches for y in own], classes)
    return splits


def mnist(folder: Path, dataset: DataSet) -> Splits | None:
    """MNIST's four idx files. Classes get the data set's `class_names`, or their numbers."""
    splits = {}
    for split, prefix in ("train", "train"), ("val", "t10k"):
        images = read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        if images is None or labels is None:
            return None
        splits[split] = _by_class(_framed_rgb(images), labels, dataset.class_names or _numbers(dataset.classes))
    return splits


def read_idx(folder: Path, name: str) -> np.ndarray | None:
    """The uint8 array in MNIST's idx file `name`, gzipped or not; None if `folder` has no such file."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        return None
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(data, ">u4", data[3], 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): fetch it again") from error


def array(folder: Path, dataset: DataSet) -> Splits | None:
    """The file `source`: a grey uint8 array (class, image, 28, 28) compressed by xz.

    Of each class the training images come first; the data set's `images` say how many they are.
    """
    path = folder / dataset.source
    if not path.is_file():
        return None
    try:
        of_classes = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    except (lzma.LZMAError, EOFError, ValueError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): fetch it again") from error
    train = dataset.images[0] // dataset.classes
    names = dataset.class_names or _numbers(dataset.classes)
    return {
        "train": {name: list(_framed_rgb(images[:train])) for name, images in zip(names, of_classes)},
        "val": {name: list(_framed_rgb(images[train:])) for name, images in zip(names, of_classes)},
    }


def _numbers(classes: int) -> list[str]:
    """Names whose sorted order is the labels' order."""
    return [f"{k:0{len(str(classes - 1))}d}" for k in range(classes)]


def _framed_rgb(images: np.ndarray) -> np.ndarray:
    """Grey (N, 28, 28), framed with zeros to the (N, 32, 32, 3) that the networks of this field expect."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def _by_class(images: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """{class: its images in their original order}."""
    labels = np.asarray(labels)
    if len(labels) != len(images) or (len(labels) and labels.max() >= len(classes)):
        raise UserError(f"{len(images)} images, {len(labels)} labels and {len(classes)} classes do not fit together")
    return {name: list(images[labels == k]) for k, name in enumerate(classes)}


LAYOUTS: dict[str, Callable[[Path, DataSet], Splits | None]] = {
    "image_folder": image_folder,
    "tiny_imagenet": tiny_imagenet,
    "cifar": cifar,
    "mnist": mnist,
    "array": array,
}
