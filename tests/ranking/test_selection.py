"""The selected images on disk."""

import hashlib

from helpers import noise, tree
from ranking.selection import copy


def test_copy_is_byte_for_byte_and_sorts_by_position(tmp_path):
    for k in range(12):
        noise(tmp_path / "in" / "a b" / f"{11 - k}.png", k)
    order = [f"a b/{k}.png" for k in range(12)]
    (tmp_path / "out").mkdir()
    copied, digests = copy({"a b": order}, tmp_path / "in", tmp_path / "out")
    made = sorted((tmp_path / "out" / "a b").iterdir())
    assert copied == 12 and [file.name for file in made] == [f"{k:03d}_{k}.png" for k in range(12)]
    for file, source in zip(made, order):
        assert file.read_bytes() == (tmp_path / "in" / source).read_bytes()
        assert digests[f"a b/{file.name}"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(digests) == 12


def test_what_is_there_already_is_not_copied_again(tmp_path):
    for k in range(3):
        noise(tmp_path / "in" / "a" / f"{k}.png", k)
    chosen = {"a": [f"a/{k}.png" for k in range(3)]}
    (tmp_path / "out").mkdir()
    _, first = copy(chosen, tmp_path / "in", tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a").iterdir()}
    assert copy(chosen, tmp_path / "in", tmp_path / "out") == (0, first)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "a").iterdir()}

    damaged = tmp_path / "out" / "a" / "001_1.png"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert copy(chosen, tmp_path / "in", tmp_path / "out") == (1, first)
    assert damaged.read_bytes() == (tmp_path / "in" / "a" / "1.png").read_bytes()
    assert tree(tmp_path / "out") == ["a", *(f"a/{k:03d}_{k}.png" for k in range(3))], "nothing temporary is left"


def test_more_than_a_thousand_images_still_sort_by_position(tmp_path):
    noise(tmp_path / "in" / "a" / "x.png", 0, size=1)
    (tmp_path / "out").mkdir()
    copy({"a": ["a/x.png"] * 1001}, tmp_path / "in", tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out" / "a").iterdir())
    assert [int(name.partition("_")[0]) for name in names] == list(range(1001))
