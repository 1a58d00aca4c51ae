"""What the fuzz tests share: damage of files, and what counts as a refusal."""

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from utils.run.errors import UserError

fuzzed = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def altered(draw, value, replacement=JSON):
    """`value` with one of its parts, at whatever depth, replaced or removed."""
    value = copy.deepcopy(value)
    holder, key, part = None, None, value
    while isinstance(part, (dict, list)) and part and (holder is None or draw(st.integers(0, 3))):
        holder, key = part, draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        part = holder[key]
    if holder is None:
        return draw(replacement)
    if draw(st.booleans()):
        holder[key] = draw(replacement)
    else:
        del holder[key]
    return value


@st.composite
def damaged(draw, content):
    """`content`, bytes, with a cut, a change or something put in between."""
    place = draw(st.integers(0, len(content)))
    more = draw(st.binary(max_size=20))
    changes = [
        content[:place],
        content[:place] + more + content[place + len(more) :],
        content[:place] + more + content[place:],
        more,
    ]
    return draw(st.sampled_from(changes))


def refused_or(read):
    """What `read()` returns, or the one line in which it was refused."""
    try:
        return read()
    except UserError as error:
        return " ".join(str(error).split())
