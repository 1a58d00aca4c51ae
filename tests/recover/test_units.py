"""Work units: which images are optimised together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from recover.units import split
from utils.run.errors import UserError

shapes = {"classes": st.integers(1, 12), "ipc": st.integers(1, 9), "batch": st.integers(1, 30)}


def members(units):
    return [member for unit in units for member in unit.members]


def every(classes, ipc):
    return [(label, position) for label in range(classes) for position in range(ipc)]


@few
@given(**shapes)
def test_units_by_class(classes, ipc, batch):
    if batch < ipc:
        with pytest.raises(UserError, match="--batch-size"):
            split(classes, ipc, batch, "class")
        return
    units = split(classes, ipc, batch, "class")
    assert sorted(members(units)) == every(classes, ipc)
    for unit in units:
        labels = {label for label, _ in unit.members}
        whole = [(label, position) for label in sorted(labels) for position in range(ipc)]
        assert sorted(unit.members) == whole
        assert len(unit.members) <= batch
    assert len(units) == -(-classes // (batch // ipc)), "batches are filled"
    assert [unit.number for unit in units] == list(range(len(units)))


@few
@given(**shapes)
def test_units_by_index(classes, ipc, batch):
    units = split(classes, ipc, batch, "index")
    assert sorted(members(units)) == every(classes, ipc)
    for unit in units:
        assert len({position for _, position in unit.members}) == 1
        assert len(unit.members) <= batch
    assert len(units) == ipc * -(-classes // batch), "batches are filled"
    assert [unit.number for unit in units] == list(range(len(units)))


def test_a_batch_smaller_than_a_class():
    with pytest.raises(UserError) as error:
        split(10, 50, 49, "class")
    assert "49" in str(error.value) and "50" in str(error.value)
    assert len(split(10, 50, 50, "class")) == 10
