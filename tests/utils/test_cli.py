"""Numbers on command lines: which are taken, and what is said of others."""

import pytest

from utils import cli
from utils.nets.checkpoints import FACTS
from utils.run.errors import UserError


def parsed(*line):
    parser = cli.Parser("toy", "A stage that does nothing.")
    cli.add_common(parser)
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
