"""Makes train/ and val/ ImageFolders of the known data sets.

    python scripts/prepare_data.py NAME [--source ARCHIVE_OR_FOLDER] [--output DIR]

Without --source the data is downloaded where torchvision can; with it, nothing is. A source is an archive or a
folder in the layout that the data set is published in, or already an ImageFolder with train/ and val/ (or test/).
What lies in a local folder is linked, not copied. The output appears at once, when everything is done.
"""
import argparse
import gzip
import io
import lzma
import os
import pickle
import shutil
import socket
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image
from tqdm import tqdm

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
IMAGES = {".png", ".jpg", ".jpeg", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}

# Fashion-MNIST's labels 0 to 9, by names that a folder can have.
FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle_boot")
CUT = "fashion_mnist_cut.npy.xz"
CUT_TRAIN, CUT_VAL = 1000, 200    # images of each class in the cut

IMAGENETTE = tuple("n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 "
                   "n03888257".split())
IMAGEWOOF = tuple("n02086240 n02087394 n02088364 n02089973 n02093754 n02096294 n02099601 n02105641 n02111889 "
                  "n02115641".split())
IMAGENET100 = tuple((SCRIPTS / "imagenet100.txt").read_text().split())


class Problem(Exception):
    """What the user can put right; told in one line."""


# A layout takes a folder and the data set, and gives {"train": {class: images}, "val": {class: images}}, or None if
# the folder is laid out otherwise. `images` is a folder of them, a list of files, or a list of uint8 arrays (H, W, 3).

def is_image(path):
    return path.suffix.lower() in IMAGES


def class_folders(split, wanted=None):
    """{class: its folder of images}; `wanted` picks classes out of a larger set, such as ImageNet's."""
    folders = {d.name: d for d in sorted(split.iterdir()) if d.is_dir() and (wanted is None or d.name in wanted)}
    missing = sorted(set(wanted or ()) - set(folders))
    if (missing or not folders) and any(map(is_image, split.iterdir())):
        raise Problem(f"{split} holds images, not one folder per class: sort it first (for ImageNet's validation "
                      "images the script valprep.sh is what is commonly used)")
    if missing:
        raise Problem(f"{split} lacks {len(missing)} of the {len(wanted)} classes, the first is {missing[0]}")
    folders = {name: d / "images" if (d / "images").is_dir() else d for name, d in folders.items()}
    for name, folder in folders.items():
        if not any(map(is_image, folder.iterdir())):
            raise Problem(f"the class folder {folder} holds no images")
    return folders


def image_folder(folder, spec):
    test = next((folder / n for n in ("val", "test") if (folder / n).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        return None
    return {"train": class_folders(folder / "train", spec.only), "val": class_folders(test, spec.only)}


def tiny_imagenet(folder, spec):
    """train/WNID/images/*.JPEG, and val/images/*.JPEG with their classes in val/val_annotations.txt."""
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (folder / "val" / "images").is_dir():
        return None
    val = {}
    for line in sorted(annotations.read_text().splitlines()):
        name, wnid = line.split("\t")[:2]
        image = folder / "val" / "images" / name
        if not image.is_file():
            raise Problem(f"{image} is missing, and {annotations.name} lists it")
        val.setdefault(wnid, []).append(image)
    return {"train": class_folders(folder / "train"), "val": val}


class ArraysOnly(pickle.Unpickler):
    """CIFAR comes as pickles, which can hold any code: this reads arrays and plain values, and nothing else."""
    allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
               ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def unpickle(path):
    try:
        with open(path, "rb") as file:
            return ArraysOnly(file, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise Problem(f"{path} cannot be read as a batch of CIFAR: {first_line(error)}") from error


def cifar(folder, spec):
    """The "python version": pickled batches of flat (3 * 32 * 32) images, with labels and the labels' names."""
    for meta, names, labels, train, val in (
            ("batches.meta", b"label_names", b"labels", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]),
            ("meta", b"fine_label_names", b"fine_labels", ["train"], ["test"])):
        if (folder / meta).is_file():
            break
    else:
        return None
    classes = [name.decode() for name in unpickle(folder / meta)[names]]
    splits = {}
    for split, files in ("train", train), ("val", val):
        missing = [f for f in files if not (folder / f).is_file()]
        if missing:
            raise Problem(f"{folder} lacks {missing[0]}")
        batches = [unpickle(folder / f) for f in files]
        images = np.concatenate([np.asarray(b[b"data"]) for b in batches]).reshape(-1, 3, 32, 32)
        splits[split] = by_class(images.transpose(0, 2, 3, 1), [y for b in batches for y in b[labels]], classes)
    return splits


def read_idx(folder, name):
    """An array in MNIST's idx format, gzipped or not; None if `folder` has no such file."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        return None
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(data, ">u4", data[3], 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise Problem(f"{path} is damaged ({first_line(error)}): fetch it again") from error


def fashion_idx(folder, spec):
    splits = {}
    for split, prefix in ("train", "train"), ("val", "t10k"):
        images, labels = read_idx(folder, f"{prefix}-images-idx3-ubyte"), read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        if images is None or labels is None:
            return None
        splits[split] = by_class(as_rgb32(images), labels, FASHION)
    return splits


def fashion_cut(folder, spec):
    if not (folder / CUT).is_file():
        return None
    images = np.load(io.BytesIO(lzma.decompress((folder / CUT).read_bytes())))    # (class, image, 28, 28)
    return {"train": {name: list(as_rgb32(x[:CUT_TRAIN])) for name, x in zip(FASHION, images)},
            "val": {name: list(as_rgb32(x[CUT_TRAIN:])) for name, x in zip(FASHION, images)}}


def as_rgb32(images):
    """Grey (N, 28, 28) to the (N, 32, 32, 3) that the networks of this field expect, framed with zeros."""
    return np.repeat(np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None], 3, axis=-1)


def by_class(images, labels, classes):
    """{class: its images in their original order}."""
    labels = np.asarray(labels)
    if len(labels) != len(images) or (len(labels) and labels.max() >= len(classes)):
        raise Problem(f"{len(images)} images, {len(labels)} labels and {len(classes)} classes do not fit together")
    return {name: list(images[labels == k]) for k, name in enumerate(classes)}


# Each fetches into a folder by torchvision's downloader, which checks what comes, and says where the data lies.

def fetch_cifar10(folder):
    from torchvision.datasets import CIFAR10
    CIFAR10(folder, download=True)
    return folder


def fetch_cifar100(folder):
    from torchvision.datasets import CIFAR100
    CIFAR100(folder, download=True)
    return folder


def fetch_fashion_mnist(folder):
    from torchvision.datasets import FashionMNIST
    FashionMNIST(folder, download=True)
    return folder / "FashionMNIST" / "raw"


def fetch_imagenette(folder):
    from torchvision.datasets import Imagenette
    Imagenette(folder, size="320px", download=True)
    return folder


def embedded(folder):
    return SCRIPTS / "embedded"


@dataclass(frozen=True)
class DataSet:
    classes: int
    layouts: tuple               # tried in this order
    source: str                  # what --source wants: the official archive's name, or what else there is
    home: str                    # where people get it
    images: tuple = ()           # the published number of training and test images
    fetch: Callable = None
    only: tuple = None           # the classes, by name, where they are a part of a larger set


IMAGENET = "your folder of ImageNet with train/WNID/ and val/WNID/"
FASTAI = "https://github.com/fastai/imagenette"
DATASETS = {
    "cifar10": DataSet(10, (cifar, image_folder), "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html",
                       (50000, 10000), fetch_cifar10),
    "cifar100": DataSet(100, (cifar, image_folder), "cifar-100-python.tar.gz",
                        "https://www.cs.toronto.edu/~kriz/cifar.html", (50000, 10000), fetch_cifar100),
    "fashion_mnist": DataSet(10, (fashion_idx, image_folder), "the folder of its four *-ubyte.gz files",
                             "https://github.com/zalandoresearch/fashion-mnist", (60000, 10000), fetch_fashion_mnist),
    "fashion_mnist_cut": DataSet(10, (fashion_cut,), CUT, "scripts/embedded of this repository",
                                 (10 * CUT_TRAIN, 10 * CUT_VAL), embedded),
    "tinyimagenet": DataSet(200, (tiny_imagenet, image_folder), "tiny-imagenet-200.zip",
                            "http://cs231n.stanford.edu/tiny-imagenet-200.zip", (100000, 10000)),
    "imagenette": DataSet(10, (image_folder,), "imagenette2-320.tgz", FASTAI, (9469, 3925), fetch_imagenette, IMAGENETTE),
    "imagewoof": DataSet(10, (image_folder,), "imagewoof2-320.tgz", FASTAI, (9025, 3929), only=IMAGEWOOF),
    "imagenet100": DataSet(100, (image_folder,), IMAGENET, "https://image-net.org", only=IMAGENET100),
    "imagenet1k": DataSet(1000, (image_folder,), IMAGENET, "https://image-net.org", (1281167, 50000)),
}


def download(name, spec, folder):
    """Where the data lies that torchvision fetched into `folder`; a Problem that says what to do where it could not."""
    reason = "cannot be downloaded by this script"
    if spec.fetch:
        try:
            socket.setdefaulttimeout(60)
            return spec.fetch(folder)
        except (OSError, RuntimeError) as error:    # URLError is an OSError
            reason = f"could not be downloaded ({first_line(error)})"
    raise Problem(f"{name} {reason}: get {spec.source} (see {spec.home}) and pass it, "
                  f"as in: bash scripts/prepare_data.sh {name} --source PATH")


def unpack(archive, folder):
    """Extracts a tar or zip archive into `folder`, and nothing outside it."""
    try:
        bar = tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=None)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped, bar:
                for name in zipped.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise Problem(f"{archive} holds the unsafe name {name!r}, which leads out of its folder")
                    zipped.extract(name, folder)
                    bar.update()
        elif tarfile.is_tarfile(archive):
            if not hasattr(tarfile, "data_filter"):
                raise Problem("this Python cannot extract tar archives safely: 3.10.12, 3.11.4 and any newer can")
            with tarfile.open(archive) as tar, bar:
                for member in tar:
                    tar.extract(member, folder, filter="data")
                    bar.update()
        else:
            raise Problem(f"{archive} is not a readable tar or zip archive, or is damaged: fetch it again")
    except tarfile.FilterError as error:
        raise Problem(f"{archive} holds an unsafe name: {first_line(error)}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile,
            RuntimeError) as error:    # RuntimeError: a zip that is encrypted, or compressed in an unknown way
        raise Problem(f"{archive} cannot be unpacked, it may be damaged ({first_line(error)}): fetch it again") from error


def read(source, spec, scratch):
    """The splits of a source, an archive being unpacked into `scratch` first."""
    if not source.exists():
        raise Problem(f"no such file or folder: {source}")
    if source.is_file():
        unpack(source, scratch)
        source = scratch
    # An archive's or a download's own folder stands one level down.
    folders = [source, *sorted(d for d in source.iterdir() if d.is_dir())]
    for layout in spec.layouts:
        for folder in folders:
            splits = layout(folder, spec)
            if splits:
                return splits
    if source != scratch and (source / spec.source).is_file():
        return read(source / spec.source, spec, scratch)
    raise Problem(f"{source} is laid out in no way that is known here: expected {spec.source}, what it unpacks to, "
                  "or train/ and val/ (or test/) with one folder of images per class")


def check(splits, name, spec, source):
    """Raises a Problem unless the splits have the same classes, and as many as the data set."""
    train, val = set(splits["train"]), set(splits["val"])
    if train != val:
        odd = sorted(train ^ val)[0]
        raise Problem(f"{source}: the class {odd} is in {'train' if odd in train else 'val'} only")
    if len(train) != spec.classes:
        raise Problem(f"{source} has {len(train)} classes, and {name} has {spec.classes}")


def place(path, target, scratch):
    """Moves what this run unpacked; links what is the user's own."""
    if path.is_relative_to(scratch):
        path.rename(target)
    else:
        target.symlink_to(path.resolve())


def write(splits, folder, scratch):
    """Writes the splits as folder/train/CLASS/ and folder/val/CLASS/; arrays become PNG files numbered in their order."""
    tasks = [(split, name, images) for split in ("train", "val") for name, images in sorted(splits[split].items())]
    for split, name, images in tqdm(tasks, desc="writing", unit=" classes", disable=None):
        target = folder / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(images, Path):
            place(images, target, scratch)
            continue
        target.mkdir()
        for k, image in enumerate(images):
            if isinstance(image, Path):
                place(image, target / image.name, scratch)
            else:
                Image.fromarray(np.ascontiguousarray(image)).save(target / f"{k:04d}.png")


def make(name, source, output):
    """Builds beside `output` and renames at the end, so that a killed run leaves nothing that looks finished."""
    spec = DATASETS[name]
    partial = output.with_name(output.name + ".partial")
    scratch = partial / "source"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        source = source.resolve() if source else download(name, spec, scratch)
        splits = read(source, spec, scratch)
        check(splits, name, spec, source)
        write(splits, partial, scratch)
        shutil.rmtree(scratch)
        os.rename(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def report(name, output):
    """Prints what a script's variables have to be, and what is there."""
    spec = DATASETS[name]
    shown = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    counts = []
    for split in "train", "val":
        classes = [d for d in (output / split).iterdir() if d.is_dir()]
        if len(classes) != spec.classes:
            raise Problem(f"{output / split} has {len(classes)} classes, and {name} has {spec.classes}: choose another --output")
        counts.append(sum(is_image(image) for d in classes for image in d.iterdir()))
        print(f"{split.upper()}_DIR={shown / split}    {len(classes)} classes, {counts[-1]} images")
    if spec.images and tuple(counts) != spec.images:
        print(f"note: {name} as published has {spec.images[0]} training and {spec.images[1]} test images")


def first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("--source", type=Path, help="an archive or a folder to take the data from, instead of a download")
    parser.add_argument("--output", type=Path, help="default: data/NAME in the repository's root")
    args = parser.parse_args(argv)
    output = Path(os.path.abspath(args.output or ROOT / "data" / args.name))
    try:
        if (output / "train").is_dir() and (output / "val").is_dir():
            print(f"{output} is there already, and is left as it is")
        elif output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise Problem(f"{output} exists and is no finished data set: move it away, or choose another --output")
        else:
            make(args.name, args.source, output)
        report(args.name, output)
    except (Problem, OSError) as error:
        print(f"prepare_data: {first_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
