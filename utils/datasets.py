"""Known data sets: the facts that --dataset stands for."""

from __future__ import annotations

from dataclasses import dataclass

from utils.files import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataSet:
    """Facts and defaults of a data set. `mean` and `std` are per channel, of pixels from 0 to 1."""

    classes: int
    input_size: int  # pixels
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    squeeze_epochs: int = 50


KNOWN = {
    "cifar10": DataSet(10, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 30),
    "cifar100": DataSet(100, 32, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": DataSet(10, 32, (0.2190, 0.2190, 0.2190), (0.3318, 0.3318, 0.3318), 10),
    "tinyimagenet": DataSet(200, 64),
    "imagenette": DataSet(10, 224, squeeze_epochs=100),
    "imagewoof": DataSet(10, 224, squeeze_epochs=100),
    "imagenet100": DataSet(100, 224, squeeze_epochs=100),
    "imagenet1k": DataSet(1000, 224, squeeze_epochs=90),
}


def known(name: str | None) -> DataSet | None:
    """The facts of data set `name`, None for None. Raises UserError for an unknown name."""
    if name is None:
        return None
    if name not in KNOWN:
        raise UserError(f"--dataset {name}: not a known one; known: {', '.join(KNOWN)} "
                        "(leave it out for a data set of your own)")
    return KNOWN[name]
