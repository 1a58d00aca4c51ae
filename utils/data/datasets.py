"""The known data sets: what --dataset stands for, and how utils.data.prepare gets each.

One entry of DATASETS adds one. Run as a module, it prints the names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping

from utils.run import registry
from utils.run.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SMALL_SIZE = 64  # pixels; up to this size images get the small-image stem, the padded crop, and a place in memory
SMALL = "small"  # where settings differ by data set: the others of SMALL_SIZE pixels and less


@dataclass(frozen=True)
class Download:
    """A class of torchvision.datasets that downloads a data set and checks its digest."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # its arguments, besides root and download
    folder: str = "."  # below root: where it leaves the files


@dataclass(frozen=True)
class DataSet:
    """Facts and defaults of a data set. `mean` and `std` are per channel, of pixels from 0 to 1."""

    classes: int
    input_size: int  # pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    squeeze_epochs: int = 50
    images: tuple[int, int] | None = None  # the published numbers of training and test images
    pretrained: bool = False  # whether torchvision has networks that were trained on it
    student_batch: int | None = None  # published for students, where it is not the usual one for the IPC

    # What preparing it needs
    source: str = "an ImageFolder"  # what --source wants: the official archive's file name, or what else there is
    home: str = ""  # where people get it
    layouts: tuple[str, ...] = ("image_folder",)  # names in utils.data.layouts, tried in this order
    torchvision: Download | None = None  # None: torchvision cannot download it
    embedded: str = ""  # the folder of this repository that holds it
    only: tuple[str, ...] = ()  # its classes by name, where it is a part of a larger set
    class_names: tuple[str, ...] = ()  # in label order, where its files hold numbers only


_CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
_FASTAI_HOME = "https://github.com/fastai/imagenette"
_IMAGENET_HOME = "https://image-net.org"
_IMAGENET_FOLDER = "your folder of ImageNet with train/WNID/ and val/WNID/"

_FASHION_MNIST = DataSet(
    classes=10,
    input_size=32,
    mean=(0.2190, 0.2190, 0.2190),
    std=(0.3318, 0.3318, 0.3318),
    squeeze_epochs=10,
    images=(60000, 10000),
    source="the folder of its four *-ubyte.gz files",
    home="https://github.com/zalandoresearch/fashion-mnist",
    layouts=("mnist", "image_folder"),
    torchvision=Download("FashionMNIST", folder="FashionMNIST/raw"),
    class_names=tuple("T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot".split()),
)

DATASETS = {
    "cifar10": DataSet(
        classes=10,
        input_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        squeeze_epochs=30,
        images=(50000, 10000),
        source="cifar-10-python.tar.gz",
        home=_CIFAR_HOME,
        layouts=("cifar", "image_folder"),
        torchvision=Download("CIFAR10"),
    ),
    "cifar100": DataSet(
        classes=100,
        input_size=32,
        mean=(0.5071, 0.4866, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        images=(50000, 10000),
        source="cifar-100-python.tar.gz",
        home=_CIFAR_HOME,
        layouts=("cifar", "image_folder"),
        torchvision=Download("CIFAR100"),
    ),
    "fashion_mnist": _FASHION_MNIST,
    # The first images of each class, for a first run with no download; scripts/embedded says how they were cut.
    "fashion_mnist_cut": replace(
        _FASHION_MNIST,
        images=(10000, 2000),
        source="fashion_mnist_cut.npy.xz",
        home="scripts/embedded of this repository",
        layouts=("array",),
        torchvision=None,
        embedded="scripts/embedded",
    ),
    "tinyimagenet": DataSet(
        classes=200,
        input_size=64,
        images=(100000, 10000),
        student_batch=100,
        source="tiny-imagenet-200.zip",
        home="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        layouts=("tiny_imagenet", "image_folder"),
    ),
    "imagenette": DataSet(
        classes=10,
        input_size=224,
        squeeze_epochs=100,
        images=(9469, 3925),
        source="imagenette2-320.tgz",
        home=_FASTAI_HOME,
        torchvision=Download("Imagenette", {"size": "320px"}),
        only=tuple(
            "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 "
            "n03888257".split()
        ),
    ),
    "imagewoof": DataSet(
        classes=10,
        input_size=224,
        squeeze_epochs=100,
        images=(9025, 3929),
        source="imagewoof2-320.tgz",
        home=_FASTAI_HOME,
        only=tuple(
            "n02086240 n02087394 n02088364 n02089973 n02093754 n02096294 n02099601 n02105641 n02111889 "
            "n02115641".split()
        ),
    ),
    "imagenet100": DataSet(
        classes=100,
        input_size=224,
        squeeze_epochs=100,
        source=_IMAGENET_FOLDER,
        home=_IMAGENET_HOME,
        only=tuple(Path(__file__).with_name("imagenet100.txt").read_text().split()),
    ),
    "imagenet1k": DataSet(
        classes=1000,
        input_size=224,
        squeeze_epochs=90,
        images=(1281167, 50000),
        source=_IMAGENET_FOLDER,
        home=_IMAGENET_HOME,
        pretrained=True,
    ),
}


def known(name: str | None) -> DataSet | None:
    """The facts of data set `name`, None for None. Raises UserError for an unknown name."""
    if name is None:
        return None
    if name not in DATASETS:
        raise UserError(
            f"--dataset {name}: not a known one; known: {', '.join(DATASETS)} (leave it out for a data set of your own)"
        )
    return DATASETS[name]


def first_known(*names: Any) -> str | None:
    """The first of `names`, as files and flags have them, that is a known data set's; None without one."""
    return next((name for name in names if isinstance(name, str) and name in DATASETS), None)


def called(text: str) -> str | None:
    """The known data set that people call so, as CIFAR-10 or Tiny ImageNet; None where it is none."""
    plain = {re.sub(r"[\W_]", "", name): name for name in DATASETS}
    return plain.get(re.sub(r"[\W_]", "", text).lower())


def own_settings(
    settings: Mapping[str, Mapping[str, Any]], name: str | None, input_size: int | None
) -> Mapping[str, Any]:
    """What `settings` has for data set `name`; if it has nothing, for SMALL ones if the input is that small, else none.

    Raises UserError for an unknown name.
    """
    facts = known(name)
    if name in settings:
        return settings[name]
    size = input_size or (facts.input_size if facts else None)
    return settings.get(SMALL, {}) if size and size <= SMALL_SIZE else {}


if __name__ == "__main__":
    registry.run("data set", DATASETS)
