"""Top-1 that others published, in percent, to compare with what is measured here.

ResNet-18 teacher and student, from DELT (arXiv 2411.19946, table 1), which also gives SRe2L's and RDED's.
"""

from __future__ import annotations

from utils.data.datasets import DATASETS
from validate.report.collect import Measured

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


def beside(entry: Measured) -> dict[str, float]:
    """Method -> top-1 published for what was measured; empty where that is other data than its data set's.

    Its name has to be more than a folder's, and the number of classes and the input size the data set's own; what a
    result of an earlier version does not say counts as such.
    """
    facts = DATASETS.get(entry.known_dataset)
    classes = entry.classes
    if classes is None and entry.images is not None and entry.ipc > 0:
        classes = entry.images // entry.ipc  # of earlier versions
    if not facts or classes not in (None, facts.classes):
        return {}
    if entry.settings.get("input_size") not in (None, facts.input_size):
        return {}
    return top1(entry.known_dataset, entry.ipc, entry.teacher, entry.student)
