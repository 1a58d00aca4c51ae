"""Evaluation protocols: named sets of the settings that decide a student's accuracy, apart from images and teacher.

Most published differences between methods come from these and not from the images (DD-Ranking, arXiv 2505.13300), so a
result always says by which protocol it was measured. A new protocol is an entry of PROTOCOLS, and what differs by data
set one of DATASET_SETTINGS. Run as a module, it prints the names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from utils.data.datasets import DATASETS, SMALL, SMALL_SIZE, own_settings
from utils.run import registry


@dataclass(frozen=True)
class SetFacts:
    """What a protocol depends on of a set of images."""

    num_classes: int
    ipc: int
    images: int
    input_size: int  # pixels
    dataset: str | None = None  # the known data set that it is of
    tile_side: int = 1  # tiles along a side of its images, where they are collages


@dataclass(frozen=True)
class Protocol:
    """One protocol for one student and one set, with nothing left open."""

    epochs: int
    batch_size: int
    optimizer: str  # of validate/optim.py
    lr: float
    momentum: float  # of sgd
    weight_decay: float
    accumulate: int  # parts of a batch, each a forward and backward pass of its own
    lr_schedule: str  # of validate/optim.py
    lr_steps: tuple[float, ...]  # for the schedule steps: shares of the epochs
    lr_factor: float  # at each of them
    weight_average: float  # decay of the average that is tested in the student's place; 0: none
    bn_epochs: int  # of further batches by which BatchNorm's statistics are recomputed before a test
    labels: str  # soft or hard
    teacher_statistics: str  # by which the teachers' BatchNorms normalise: running or batch
    loss: str  # of validate/targets.py
    class_weight: float  # of the cross-entropy to the image's class, added to the loss mse
    image_weights: str  # on or off: of the set's manifest, where it has them
    temperature: float
    mix: str
    rand_augment: str
    shuffle_patches: int  # patches along a side
    min_scale: float
    max_scale: float
    flip: float
    tiles: int  # along a side of a collage
    tile_share: float  # probability that a view shows one of its tiles, enlarged
    batch_augment: str  # of normalised batches: none or dsa
    evaluations: int
    tiles_of_set: bool = False  # `tiles` is what the set's manifest says
    lr_search: tuple[float, ...] = ()  # the rates that `lr` was chosen from; none where it was given


# None: decided by the student, the set or the input size, see `resolve`. A setting may be a function of SetFacts, too.
DELT = {
    "epochs": 300,
    "batch_size": None,
    "accumulate": 1,
    "optimizer": "adamw",
    "lr": None,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "lr_schedule": "half-cosine",
    "lr_steps": (0.8, 0.9, 0.95),
    "lr_factor": 0.5,
    "weight_average": 0.0,
    "bn_epochs": 0,
    "labels": "soft",
    "teacher_statistics": "running",
    "loss": None,
    "class_weight": 0.0,
    "image_weights": "on",
    "temperature": None,
    "mix": "cutmix",
    "rand_augment": "rand-m6-n2-mstd1.0",
    "shuffle_patches": 1,
    "min_scale": 0.25,
    "max_scale": 1.0,
    "flip": 0.5,
    "tiles": 1,
    "tile_share": 0.75,
    "batch_augment": "none",
}

OF_SET = "set"  # in the place of a number of tiles: that of the set's collages

# What came later: at these values results and labels are those of before, and found again.
LATER = {
    "accumulate": 1,
    "bn_epochs": 0,
    "teacher_statistics": "running",
    "tiles": 1,
    "tile_share": 0.75,
    "batch_augment": "none",
    "tiles_of_set": False,
    "lr_search": [],
}

SQUARED = "whole_images"  # beside a protocol in records: how views show whole images that are not square


def _fadrm_batch_size(facts: SetFacts) -> int:
    return 10 if facts.num_classes <= 10 else 16


def _fadrm_schedule(facts: SetFacts) -> str:
    return "cosine" if facts.ipc >= 30 else "half-cosine"


def _cim_batch_size(facts: SetFacts) -> int:
    """10, 50, 100 and 200; 50 up to 500 images, the other bounds are ours."""
    return 10 if facts.images <= 10 else 50 if facts.images <= 500 else 100 if facts.images <= 10_000 else 200


SRE2L = {**DELT, "batch_size": 1024, "lr_schedule": "cosine", "rand_augment": "none", "min_scale": 0.08}
MOSAIC = {**DELT, "rand_augment": "none", "min_scale": 0.5, "tiles": OF_SET}

PROTOCOLS: dict[str, dict[str, Any]] = {
    # DELT, section 4.1 and its evaluation code.
    "delt": DELT,
    # RDED's evaluation code: above 64 pixels crops from half of the image, whose strips are shuffled; no RandAugment.
    "rded": {**DELT, "rand_augment": "none", "shuffle_patches": None, "min_scale": None},
    # WMDD's code (its FKD): weights of images, where a set has them, divided by the batch's mean.
    "wmdd": {**DELT, "batch_size": 100, "lr_schedule": "cosine", "rand_augment": "none", "min_scale": 0.08},
    # RD3 (arXiv 2509.19743), the common protocol of its comparison: RDED's augmentation, one teacher.
    "rd3": {
        **DELT,
        "epochs": 400,
        "batch_size": 50,
        "optimizer": "adam",
        "lr": 0.001,
        "weight_decay": 0.0,
        "lr_schedule": "cosine",
        "rand_augment": "none",
        "shuffle_patches": None,
        "min_scale": None,
    },
    # FADRM (arXiv 2506.24125) and its code: the teachers normalise by each half of a batch, and a step adds up the
    # gradients of the same halves. Its settings for ResNet-18.
    "fadrm": {
        **DELT,
        "batch_size": _fadrm_batch_size,
        "accumulate": 2,
        "teacher_statistics": "batch",
        "lr_schedule": _fadrm_schedule,
        "rand_augment": "none",
        "min_scale": 0.08,
    },
    # G-VBSM (arXiv 2311.17950) and its code, for ImageNet-1K: logits, and some cross-entropy to the class.
    "gvbsm": {
        **DELT,
        "batch_size": 1024,
        "lr_schedule": "cosine",
        "loss": "mse",
        "class_weight": 0.1,
        "rand_augment": "none",
        "min_scale": 0.08,
    },
    # EDC (arXiv 2404.13733) and its code, for ImageNet-1K: small batches, mild crops, an average of the weights.
    "edc": {
        **DELT,
        "batch_size": 100,
        "loss": "mse",
        "class_weight": 0.025,
        "weight_average": 0.99,
        "rand_augment": "none",
        "min_scale": 0.5,
    },
    # CIM (arXiv 2607.00916): a tile or the whole collage, differentiable augmentation, logits of one teacher.
    "cim": {
        **DELT,
        "epochs": 1000,
        "batch_size": _cim_batch_size,
        "weight_decay": 1e-4,
        "lr": 0.001,
        "lr_schedule": "steps",
        "lr_steps": (2 / 3, 5 / 6),
        "lr_factor": 0.2,
        "loss": "mse",
        "mix": "none",
        "rand_augment": "none",
        "min_scale": 1.0,
        "flip": 0.0,
        "tiles": 2,
        "batch_augment": "dsa",
    },
    # This project's: a tile of the collage, or the whole; without RandAugment, beside which more images hardly count
    # (docs/recipes.md#mosaic). And without a teacher.
    "mosaic": MOSAIC,
    "mosaic-hard": {**MOSAIC, "labels": "hard"},
    # SRe2L, section 4.1 (FKD): large batches, the rate falls to 0. CDA has smaller ones.
    "sre2l": SRE2L,
    "cda": {**SRE2L, "batch_size": 128},
    # No teacher: what the images alone teach.
    "hard": {**DELT, "labels": "hard"},
    # The images as they stand, for DD-Ranking's robustness to augmentation.
    "noaug": {**DELT, "mix": "none", "rand_augment": "none", "min_scale": 1.0, "flip": 0.0},
}

# Of ten classes of ImageNet, by FADRM's code for ResNet-18.
_FADRM_TEN = {"lr": 0.0005, "lr_schedule": lambda facts: "cosine" if 10 <= facts.ipc < 30 else "half-cosine"}

_SGD = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4}

# By EDC's code: CIFAR-10, CIFAR-100, ImageNet-10. Its RandAugment is torchvision's, of 2 operations and magnitude 9.
_EDC_TEN = {
    "epochs": 1000,
    "batch_size": lambda facts: 10 if facts.ipc == 1 else 25,
    "lr_schedule": "steps",  # half the rate at 800, 900 and 950
    "rand_augment": "torchvision",
    "min_scale": 0.08,
}
_EDC_SMALL = {
    **_SGD,
    "momentum": 0.875,
    "epochs": 1000,
    "batch_size": 50,
    "lr_schedule": "half-cosine-linear",
    "rand_augment": "torchvision",
}
_EDC_TEN_LARGE = {
    "epochs": 1000,
    "batch_size": 50,
    "lr_schedule": "half-cosine-linear",
    "rand_augment": "torchvision",
}

# By protocol, then by data set; `small`: those that are not named there, of 64 pixels and less.
DATASET_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    # G-VBSM's code: ResNet-18 for CIFAR-10 and Tiny-ImageNet, its ConvNet for CIFAR-100.
    "gvbsm": {
        "cifar100": {**_SGD, "epochs": 1000, "batch_size": 64, "class_weight": 0.15},
        "tinyimagenet": {**_SGD, "epochs": 100, "batch_size": 100, "accumulate": 2},
        SMALL: {"epochs": 1000, "batch_size": 100, "class_weight": 0.15, "weight_decay": 0.0},  # CIFAR-10
    },
    "edc": {
        "cifar10": _EDC_TEN,
        "fashion_mnist": _EDC_TEN,
        "fashion_mnist_cut": _EDC_TEN,
        "tinyimagenet": {**_EDC_SMALL, "epochs": 300, "batch_size": 100, "lr_schedule": "half-cosine"},
        SMALL: _EDC_SMALL,
        "imagenette": _EDC_TEN_LARGE,
        "imagewoof": _EDC_TEN_LARGE,
    },
    "fadrm": {
        # By its code, which has more epochs for few images a class of Tiny-ImageNet, and half the rate for CIFAR-100's.
        "cifar100": {"epochs": 1000, "lr": lambda facts: 0.0005 if facts.ipc < 10 else 0.001},
        "tinyimagenet": {"epochs": lambda facts: 1000 if facts.ipc < 10 else 300},
        "imagenette": _FADRM_TEN,
        "imagewoof": {**_FADRM_TEN, "lr": lambda facts: 0.0005 if facts.ipc < 30 else 0.001},
    },
    "cim": {"imagenet1k": {"epochs": 300}},
    # BatchNorm sees 512. Its students of Tiny-ImageNet are those of ImageNet.
    "sre2l": {"imagenet1k": {"accumulate": 2}, "tinyimagenet": {"accumulate": 2}},
}


def recipes(dataset: str | None = None, input_size: int | None = None) -> dict[str, dict[str, Any]]:
    """PROTOCOLS as they are for a data set, or for images of `input_size` pixels where nobody names one.

    Raises UserError for an unknown data set.
    """
    own = {name: own_settings(DATASET_SETTINGS.get(name, {}), dataset, input_size) for name in PROTOCOLS}
    return {name: {**settings, **own[name]} for name, settings in PROTOCOLS.items()}


# Of AdamW, as published.
LEARNING_RATES = {
    "efficientnet_b0": 0.002,
    "mobilenet_v2": 0.0025,
    "vgg11": 0.0005,
    "alexnet": 0.0001,
    "vit_b_16": 0.0001,
    "swin_v2_t": 0.0001,
}

SEARCH = "search"  # in the place of a learning rate
SEARCHED = (0.1, 0.3, 1.0, 3.0, 10.0)  # times the rate of the protocol, or the published one
RECIPE_LR = "recipe_lr"  # beside SEARCH in a protocol's settings: its own rate, where it has one


def resolve(settings: dict[str, Any], arch: str, facts: SetFacts, evaluations: int) -> Protocol:
    """The protocol of `settings` for a student `arch` on a set; with the rates to choose from where one is searched."""
    settings = {name: value(facts) if callable(value) else value for name, value in settings.items()}
    if settings["batch_size"] is None:
        settings["batch_size"] = default_batch_size(facts)
    settings["batch_size"] = min(settings["batch_size"], facts.images)
    recipe_lr = settings.pop(RECIPE_LR, None)
    if settings["lr"] in (None, SEARCH):
        rate = LEARNING_RATES.get(arch, 0.001) if recipe_lr is None else recipe_lr
        if settings["lr"] == SEARCH:
            settings["lr_search"] = tuple(float(f"{factor * rate:.6g}") for factor in SEARCHED)
        settings["lr"] = rate
    if settings["tiles"] == OF_SET:
        settings |= {"tiles": facts.tile_side, "tiles_of_set": True}
    if settings["loss"] is None:
        settings["loss"] = "ce" if settings["labels"] == "hard" else "kl"
    if settings["temperature"] is None:
        settings["temperature"] = 1.0 if settings["loss"] == "ce" else 4.0 if settings["mix"] == "mixup" else 20.0
    if settings["shuffle_patches"] is None:
        # RDED's factor: above, it tiles its images.
        settings["shuffle_patches"] = 1 if facts.input_size <= SMALL_SIZE else 2
    if settings["min_scale"] is None:
        settings["min_scale"] = min(1 / settings["shuffle_patches"], settings["max_scale"])
    return Protocol(**settings, evaluations=evaluations)


def said(protocol: Protocol) -> dict[str, Any]:
    """What names a protocol in records, as JSON has it."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(protocol).items()}
    return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


def default_batch_size(facts: SetFacts) -> int:
    """The published batch: the data set's own (Tiny-ImageNet's 100), else by IPC, doubled for many classes."""
    if (known := DATASETS.get(facts.dataset)) and known.student_batch:
        return known.student_batch
    size = 10 if facts.ipc < 10 else 50 if facts.ipc < 30 else 100
    return 2 * size if facts.num_classes >= 100 else size


if __name__ == "__main__":
    registry.run("protocol", PROTOCOLS)
