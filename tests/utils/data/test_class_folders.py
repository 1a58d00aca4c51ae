"""Folders whose labels are in the order of a teacher's classes."""

import pytest

from helpers import gray
from utils.data.class_folders import folder_for
from utils.data.geometry import Geometry
from utils.run.errors import UserError


def test_another_number_of_classes_than_the_teacher_knows(tmp_path):
    for name in "ab":
        gray(tmp_path / name / "0.png", 0)
    teacher = Geometry(16, (0.0,) * 3, (1.0,) * 3, num_classes=3, classes=None, stem="cifar")
    with pytest.raises(UserError, match="--val-dir.* 2 classes.* 3"):
        folder_for(teacher, str(tmp_path), "--val-dir")
