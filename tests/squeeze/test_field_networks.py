"""The networks of the field pass through all stages: as a teacher, and as a student of itself."""

import pytest
import torch

from conftest import CLASSES, images

SLOW = ("shufflenet_v2_x0_5", "mobilenet_v2", "wrn_16_2")
NETWORKS = ["conv1", "conv2", "conv3_w32", "wrn_10_1", *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW)]


@pytest.mark.parametrize("arch", NETWORKS)
def test_from_squeeze_to_validate(place, arch):
    teacher = place / "own.pth"
    place.works("squeeze", arch=arch, output=teacher, epochs=1)
    facts = torch.load(teacher, weights_only=True)
    assert (facts["arch"], facts["stem"]) == (arch, "cifar")
    line = dict(teacher_path=teacher, teacher_arch=arch)
    place.works("ranking", ipc=2, **line)
    place.works("recover", init_dir=place / "selected", iterations=2, round_iterations=1, **line)
    assert len(images(place.syn)) == 2 * len(CLASSES)
    said = place.works("validate", syn_dir=place.syn, epochs=1, **line)
    assert f", {arch}, delt epochs=1: top-1" in said
