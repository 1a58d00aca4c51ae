"""Files of statistics beside images: the classes of both stand in one order."""

import pytest
import torch

from utils.nets.statistics import require_order, write
from utils.run.errors import UserError


def test_the_same_classes_in_another_order_are_refused(tmp_path):
    """Each would be guided by another's; names of another kind are matched by position, and say nothing."""
    path = tmp_path / "points.safetensors"
    write(path, {"points": torch.zeros(3, 2, 4)}, {"classes": ["ant", "bee", "moth"]}, [], 1.0)
    require_order(path, ["ant", "bee", "moth"])
    require_order(path, ["0", "1", "2"])
    with pytest.raises(UserError, match="points.safetensors: has the classes in another order than the images"):
        require_order(path, ["ant", "moth", "bee"])
