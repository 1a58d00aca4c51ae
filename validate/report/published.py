"""Top-1 that others published, in percent, to compare with what is measured here.

ResNet-18 teacher and student, from DELT (arXiv 2411.19946, table 1), which also gives SRe2L's and RDED's.
"""

from __future__ import annotations

# data set -> IPC -> method -> top-1
RESNET18: dict[str, dict[int, dict[str, float]]] = {
    "cifar10": {
        1: {"SRe2L": 16.6, "RDED": 22.9, "DELT": 24.0},
        10: {"SRe2L": 29.3, "RDED": 37.1, "DELT": 43.0},
        50: {"SRe2L": 45.0, "RDED": 62.1, "DELT": 64.9},
    },
    "imagenette": {
        1: {"RDED": 35.8, "DELT": 24.1},
        10: {"SRe2L": 29.4, "RDED": 61.4, "DELT": 66.0},
        50: {"SRe2L": 40.9, "RDED": 80.4, "DELT": 88.2},
    },
    "tinyimagenet": {
        1: {"RDED": 9.7, "DELT": 9.3},
        10: {"SRe2L": 16.1, "RDED": 41.9, "DELT": 43.0},
        50: {"SRe2L": 41.1, "RDED": 58.2, "DELT": 55.7},
    },
    "imagenet1k": {
        1: {"SRe2L": 0.1, "RDED": 6.6},
        10: {"SRe2L": 21.3, "RDED": 42.0, "DELT": 46.1},
        50: {"SRe2L": 46.8, "RDED": 56.5, "DELT": 59.2},
    },
}


def top1(dataset: str, ipc: int, teacher: str, student: str) -> dict[str, float]:
    """Method -> top-1 published for these networks on this data set; empty if none is known."""
    return RESNET18.get(dataset, {}).get(ipc, {}) if teacher == student == "resnet18" else {}
