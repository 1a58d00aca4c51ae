"""Methods: recipes as named sets of recover's flags. Given flags win, and show in the name.

A new method is an entry of METHODS, and an objective of its own (recover/objectives) where it needs one. Run as a
module, it prints the names.
"""

from __future__ import annotations

from utils.run import registry

# DELT, section 4.1 and its released code: EarlyLate from real images.
DELT = {
    "objective": "batchnorm",
    "iterations": 4000,
    "round_iterations": 500,
    "lr": 0.25,
    "r_bn": 0.01,
    "first_bn_multiplier": 10.0,
    "combine": "mean",
    "jitter": 0,
    "curriculum": "cosine",
    "milestone": 1.0,
    "min_crop": 0.08,
    "init": "images",
    "batch_by": "class",
}

METHODS = {
    "delt": DELT,
    # CDA (arXiv 2311.18838): the curriculum without rounds; a batch holds one image of each class.
    "cda": {**DELT, "round_iterations": 0, "batch_by": "index"},
    # SRe2L (arXiv 2306.13092): from noise, with the smallest crop from the start.
    "sre2l": {**DELT, "round_iterations": 0, "batch_by": "index", "init": "noise", "milestone": 0.0},
}


if __name__ == "__main__":
    registry.main("method", METHODS)
