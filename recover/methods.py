"""Methods: recipes as named sets of recover's flags. Given flags win, and show in the name.

A new method is an entry of METHODS, an objective of its own (recover/objectives) where it needs one, what differs
by data set in DATASET_SETTINGS, and what it needs besides recover in NEEDS of recover/needs.py. Run as a module, it
answers scripts (recover/needs.py): the names, what a method needs, and which one made a set.
"""

from __future__ import annotations

import sys
from typing import Any

from utils.data.datasets import SMALL, own_settings
from utils.run import boundary

# DELT, section 4.1 and its released code: EarlyLate from real images.
DELT = {
    "objective": "batchnorm",
    "iterations": 4000,
    "round_iterations": 500,
    "optimizer": "adam",
    "lr": 0.25,
    "weight_decay": 0.0,
    "lr_schedule": "cosine",
    "learn": "image",
    "clamp": True,
    "r_bn": 0.01,
    "first_bn_multiplier": 10.0,
    "combine": "mean",
    "crop": "resized",
    "curriculum": "cosine",
    "milestone": 1.0,
    "min_crop": 0.08,
    "flip": True,
    "jitter": 0,
    "jitter_low": None,  # -jitter
    "stages": 1,
    "stage_sizes": (1.0,),
    "blend": 0.5,
    "init": "images",
    "batch_by": "class",
    "batch_size": 100,
}

# CIM (arXiv 2607.00916): what is added to collages, so that their tiles have the features of their originals.
_CIM = {
    **DELT,
    "objective": "features",
    "iterations": 200,
    "round_iterations": 0,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.01,
    "learn": "difference",
    "clamp": False,
    "crop": "none",
    "flip": False,
    "augment": "crop_cutout_flip",  # of utils/data/dsa.py, one a step, of tiles and originals
}

# FADRM (arXiv 2506.24125) and its code: from RDED's patches, 4 stages of 500 iterations at 200 and 224 pixels in turn.
_FADRM = {
    **DELT,
    "iterations": 2000,
    "round_iterations": 0,
    "combine": "turn",
    "milestone": 0.0,
    "jitter": 32,
    "jitter_low": 0,
    "stages": 4,
    "stage_sizes": (200 / 224, 1.0),
    "batch_by": "index",
}

METHODS = {
    "delt": DELT,
    # This project's (docs/recipes.md): EarlyLate in a fortieth of its steps, at a rate at which images stay near the
    # real ones that they start from.
    "delt+": {**DELT, "iterations": 100, "round_iterations": 20, "lr": 0.1},
    # CDA (arXiv 2311.18838): the curriculum without rounds; a batch holds one image of each class.
    "cda": {**DELT, "round_iterations": 0, "batch_by": "index"},
    # SRe2L (arXiv 2306.13092): from noise, with the smallest crop from the start.
    "sre2l": {**DELT, "round_iterations": 0, "batch_by": "index", "init": "noise", "milestone": 0.0},
    # WMDD (arXiv 2311.18531) and its code: features at the points of their class's barycenter; whole classes, from
    # noise. Its code rolls by 0 to 32 of 224 pixels.
    "wmdd": {
        **DELT,
        "objective": "wasserstein",
        "iterations": 2000,
        "round_iterations": 0,
        "first_bn_multiplier": 1.0,
        "init": "noise",
        "milestone": 0.0,
        "jitter": 32,
        "jitter_low": 0,
        "per_class": True,  # BatchNorm statistics class by class, of a file of squeeze.statistics --per-class
    },
    "cim": _CIM,
    # This project's (docs/recipes.md#mosaic): CIM's features in a fifth of its steps, of originals that are neither the
    # easiest nor any.
    "mosaic": {**_CIM, "iterations": 40, "lr": 0.05},
    # G-VBSM (arXiv 2311.17950) and its code, for ImageNet-1K: what convolutions get as well, several teachers in turn.
    "gvbsm": {
        **DELT,
        "objective": "statistics",
        "round_iterations": 0,
        "lr": 0.1,
        "combine": "turn",
        "milestone": 0.0,
        "jitter": 32,
        "jitter_low": 0,
        "init": "noise",
        "batch_size": 80,
        "momentum": 0.4,  # of the statistics' running averages over steps
        "drop": 0.0,  # probability that a step leaves out a convolution's terms
        "class_share": 0.0,  # of the distances to the classes' own statistics
        "densification": 1.0,
    },
    # EDC (arXiv 2404.13733) and its code, for ImageNet-1K: from collages, with each class's statistics.
    "edc": {
        **DELT,
        "objective": "statistics",
        "iterations": 2000,
        "round_iterations": 0,
        "lr": 0.05,
        "r_bn": 0.1,
        "combine": "turn",
        "milestone": 0.0,
        "min_crop": 0.5,
        "batch_size": 80,
        "momentum": 0.8,
        "drop": 0.0,
        "class_share": 0.5,
        "densification": 0.0,
    },
    # With one teacher, and as it is called with several in turn: ResNet-18, DenseNet-121, ShuffleNetV2, MobileNetV2.
    "fadrm": _FADRM,
    "fadrm+": _FADRM,
}

# --- what differs by data set ------------------------------------------------------------------------------------

# SRe2L's code for ImageNet-1K rolls by 0 to 32 pixels; its authors have no recipe for these parts of ImageNet.
_IMAGENET_ROLL = {"jitter": 32, "jitter_low": 0}
_IMAGENETS = ("imagenet1k", "imagenet100", "imagenette", "imagewoof")

# SRe2L's code for CIFAR-100: neither crop nor flip. Its authors have no recipe for CIFAR-10 and the like.
_SRE2L_CIFAR = {"iterations": 1000, "crop": "none", "flip": False, "jitter": 4, "jitter_low": 0}

# EDC's code: CIFAR-10, all images at once; CIFAR-100 and Tiny-ImageNet; ImageNet-10.
_EDC_TEN = {"iterations": 75, "r_bn": 0.01, "min_crop": 0.08, "batch_size": 0}
_EDC_SMALL = {"r_bn": 0.01, "batch_size": 100}
_EDC_TEN_LARGE = {"iterations": 1000, "batch_size": 100}
# FADRM's code for CIFAR-100 and Tiny-ImageNet: one size, smaller rolls.
_FADRM_SMALL = {"stage_sizes": (1.0,), "jitter": 4}

# By method, then by data set; `small`: those that are not named here, of SMALL_SIZE pixels and less.
DATASET_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cda": {
        # CDA's code: SRe2L's views and noise, with the curriculum; for Tiny-ImageNet a roll one way.
        **{name: {"init": "noise", **_IMAGENET_ROLL} for name in _IMAGENETS},
        "tinyimagenet": {"init": "noise", "lr": 0.4, "r_bn": 0.05, "jitter": 4, "jitter_low": 0},
    },
    "sre2l": {
        **{name: _IMAGENET_ROLL for name in _IMAGENETS},
        "tinyimagenet": {"lr": 0.1, "r_bn": 1.0, "jitter": 4},
        "cifar100": _SRE2L_CIFAR,
        SMALL: _SRE2L_CIFAR,
    },
    "wmdd": {
        "imagenette": {"r_bn": 10.0},
        # At 224 pixels there; a roll by the same share of 64 and of 32.
        "tinyimagenet": {"lr": 0.1, "r_bn": 1.0, "jitter": 9},
        SMALL: {"jitter": 4},
    },
    # G-VBSM's code for CIFAR-10, CIFAR-100 and Tiny-ImageNet (which pads the last one's crops by 8 pixels).
    "gvbsm": {SMALL: {"lr": 0.05, "batch_size": 100, "crop": "padded", "momentum": 0.8, "drop": 0.4}},
    "edc": {
        "cifar10": _EDC_TEN,
        "fashion_mnist": _EDC_TEN,
        "fashion_mnist_cut": _EDC_TEN,
        SMALL: _EDC_SMALL,
        "imagenette": _EDC_TEN_LARGE,
        "imagewoof": _EDC_TEN_LARGE,
    },
    "fadrm": {
        # By its code, with one teacher alone.
        "tinyimagenet": {**_FADRM_SMALL, "iterations": 1000, "stages": 2, "lr": 0.01},
        "imagenette": {"lr": 0.05},
        SMALL: _FADRM_SMALL,
    },
    "fadrm+": {SMALL: _FADRM_SMALL},
}


def recipes(dataset: str | None = None, input_size: int | None = None) -> dict[str, dict[str, Any]]:
    """METHODS as they are for a data set, or for images of `input_size` pixels where nobody names one.

    Raises UserError for an unknown data set.
    """
    own = {name: own_settings(DATASET_SETTINGS.get(name, {}), dataset, input_size) for name in METHODS}
    return {name: {**recipe, **own[name]} for name, recipe in METHODS.items()}


def main() -> None:
    from recover import needs  # here: it reads the recipes

    needs.main()


if __name__ == "__main__":
    sys.exit(boundary.run(main))
