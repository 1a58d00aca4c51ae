"""Numbers on command lines: which are taken, and what is said of others."""

import pytest

from utils import cli
from utils.nets.checkpoints import FACTS
from utils.run.errors import UserError


def parsed(*line):
    parser = cli.Parser("toy", "A stage that does nothing.")
    cli.add_common(parser, "images per batch")
    return parser.parse_args([str(word) for word in line])


@pytest.mark.parametrize("size", [7, 8, 4096, 4097])
def test_an_input_size_is_one_that_a_teachers_file_may_have(size):
    """Or a teacher would be trained, and no stage would read it."""
    _, may_be = FACTS["input_size"]
    if may_be(size):
        assert parsed("--input-size", size).input_size == size
    else:
        with pytest.raises(UserError, match=f"--input-size: '{size}' is not a whole number of 8 to 4096"):
            parsed("--input-size", size)


@pytest.mark.parametrize(
    "flag, values, words",
    [
        ("--mean", ["a", 0, 0], "'a' is not a finite number"),
        ("--mean", ["inf", 0, 0], "'inf' is not a finite number"),
        ("--std", [1, 1, 0], "'0' is not a number above 0"),
        ("--std", [1, 1, "wide"], "'wide' is not a number above 0"),
        ("--seed", ["²"], "'²' is not a whole number of 0 or more"),
        ("--seed", [1.5], "'1.5' is not a whole number of 0 or more"),
        ("--batch-size", ["²"], "'²' is neither a whole number of 1 or more nor auto"),
        ("--batch-size", [0], "'0' is neither a whole number of 1 or more nor auto"),
        ("--input-size", ["²"], "'²' is not a whole number of 8 to 4096"),
        ("--input-size", ["9" * 400], "' is not a whole number of 8 to 4096"),
    ],
)
def test_what_would_work_is_said_of_every_number(flag, values, words):
    with pytest.raises(UserError) as refusal:
        parsed(flag, *values)
    assert f"{flag}: " in str(refusal.value) and words in str(refusal.value)
