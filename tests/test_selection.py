"""Scores, the ranking file, and which images are selected."""
import csv
from itertools import accumulate

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import CPU, few, gray, noise, tree
from ranking import score
from ranking.parts import Parts
from ranking.select import copy, select, select_all
from utils.checkpoints import Teacher
from utils.files import UserError
from utils.images import ImageFolder

# In ascending order: c a e b d
FIVE = {"a": 0.2, "b": 0.7, "c": 0.1, "d": 0.9, "e": 0.5}
FOUR = {"a": 0.2, "b": 0.7, "c": 0.1, "e": 0.5}  # c a e b


def chosen(scores, ipc, criterion, *stream):
    return "".join(select(list(scores), list(scores.values()), ipc, criterion, *stream))


@pytest.mark.parametrize("scores, criterion, order", [
    (FIVE, "top", "dbeac"), (FIVE, "min", "caebd"), (FIVE, "medium", "ebadc"),
    (FOUR, "top", "beac"), (FOUR, "min", "caeb"), (FOUR, "medium", "aecb"),
    ({"a": 0.3}, "top", "a"), ({"a": 0.3}, "min", "a"), ({"a": 0.3}, "medium", "a"),
    ({"a": 0.3, "b": 0.1}, "medium", "ba"),
    # Equal scores go by path, whatever the direction.
    ({"c": 0.5, "a": 0.5, "b": 0.5}, "top", "abc"),
    ({"c": 0.5, "a": 0.5, "b": 0.5}, "min", "abc"),
    ({"c": 0.5, "a": 0.5, "b": 0.5}, "medium", "bca"),
    ({"d": 1.0, "c": 0.5, "a": 0.5, "b": 1.0}, "top", "bdac"),
])
def test_orders_by_hand(scores, criterion, order):
    for ipc in range(1, len(scores) + 1):
        assert chosen(scores, ipc, criterion) == order[:ipc]
        assert chosen(dict(reversed(scores.items())), ipc, criterion) == order[:ipc], "independent of the listing"


@few
@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_medium_goes_outwards_from_the_median(values):
    paths = [f"{i:02d}" for i in range(len(values))]
    scores = [value / 20 for value in values]
    full = select(paths, scores, len(paths), "medium")
    assert sorted(full) == paths
    for ipc in range(1, len(paths)):
        assert select(paths, scores, ipc, "medium") == full[:ipc], "nested"
    ascending = sorted(paths, key=lambda path: (scores[int(path)], path))
    # Counted from 1, the median is number ceil(n / 2).
    distances = [abs(ascending.index(path) + 1 - -(-len(paths) // 2)) for path in full]
    assert distances == list(accumulate(distances, max)) and distances[0] == 0


def test_random_belongs_to_its_seed_and_not_to_the_listing():
    paths = [f"{i:03d}.png" for i in range(100)]
    first = select(paths, [0.0] * 100, 20, "random", 0, "class")
    assert len(set(first)) == 20 and set(first) <= set(paths)
    assert first != sorted(first)
    shuffled = [paths[i] for i in torch.randperm(100, generator=torch.Generator().manual_seed(5))]
    assert select(shuffled, list(range(100)), 20, "random", 0, "class") == first
    assert select(paths, [0.0] * 100, 10, "random", 0, "class") == first[:10], "nested"
    assert select(paths, [0.0] * 100, 20, "random", 1, "class") != first
    assert select(paths, [0.0] * 100, 20, "random", 0, "other") != first


def table(counts):
    return pd.DataFrame([(f"{name}/{i}.png", name, i / 10) for name, n in counts.items() for i in range(n)],
                        columns=["img_path", "class", "score"])


def test_select_all_goes_class_by_class():
    found = select_all(table({"b": 3, "a": 5}), ["a", "b"], 2, "top", 0)
    assert found == {"a": ["a/4.png", "a/3.png"], "b": ["b/2.png", "b/1.png"]}
    assert list(found) == ["a", "b"]


def test_random_selection_differs_between_classes_and_seeds():
    def numbers(seed):
        return {name: [int(path[2:-4]) for path in paths]
                for name, paths in select_all(table({"a": 60, "b": 60}), ["a", "b"], 8, "random", seed).items()}

    assert numbers(0) == numbers(0)
    assert numbers(0)["a"] != numbers(0)["b"]
    assert numbers(0)["a"] != numbers(1)["a"]


def test_too_few_images_names_the_classes_and_their_counts():
    with pytest.raises(UserError) as error:
        select_all(table({"many": 9, "some": 4, "one": 1}), ["many", "some", "one", "none"], 5, "medium", 0)
    message = str(error.value)
    for part in "some (4)", "one (1)", "none (0)", "--ipc 5":
        assert part in message
    assert "many" not in message


def test_copy_is_byte_for_byte_and_sorts_by_rank(tmp_path):
    for k in range(12):
        noise(tmp_path / "in" / "a b" / f"{11 - k}.png", k)
    ranks = [f"a b/{k}.png" for k in range(12)]
    (tmp_path / "out").mkdir()
    copy({"a b": ranks}, tmp_path / "in", tmp_path / "out")
    made = sorted((tmp_path / "out" / "a b").iterdir())
    assert [file.name for file in made] == [f"{k:03d}_{k}.png" for k in range(12)]
    for file, source in zip(made, ranks):
        assert file.read_bytes() == (tmp_path / "in" / source).read_bytes()


# --- the ranking file -------------------------------------------------------------------------------------------

NAMES = ["NA", "null", "001", "1", "nan", "True", "a, b", 'say "hi"', " lead and trail ", "käse 猫", "1e5", "#x"]


class Brightness(torch.nn.Module):
    """Two logits: the image's brightness, 0 to 1, and a half."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))
        return torch.stack([bright, torch.full_like(bright, 0.5)], 1)


def scored(root, names):
    """Class k gets greys 10, 200 and 90, and 90 once more under a later name."""
    for name in names:
        for file, value in ((f"{name}.png", 10), ("b.png", 200), ("c.png", 90), ("d.png", 90)):
            gray(root / name / file, value)
    folder = ImageFolder(root, "--train-dir")
    teacher = Teacher(Brightness(), "none", "cifar", 2, folder.classes, 8, (0.0,) * 3, (1.0,) * 3, "", [])
    return folder, score.score(teacher, folder, CPU, 3, 0, Parts(root / "ranking.csv", {}))


def test_scores_are_the_probability_of_the_true_class(tmp_path):
    _, ranking = scored(tmp_path, ["x", "y"])
    assert list(ranking.columns) == ["img_path", "class", "score"]
    # softmax of (v / 255, 1 / 2): the darker, the more it is class 1.
    assert ranking["img_path"].tolist() == ["x/b.png", "x/c.png", "x/d.png", "x/x.png",
                                            "y/y.png", "y/c.png", "y/d.png", "y/b.png"]
    shares = [1 / (1 + 2.718281828459045 ** (0.5 - v / 255)) for v in (200, 90, 90, 10)]
    assert ranking["score"].tolist() == pytest.approx(shares + [1 - share for share in reversed(shares)], rel=1e-5)


def two_names(root, name):
    return scored(root, [name, "7"])  # beside it, 001 or 1e5 could pass for numbers


@pytest.mark.parametrize("name", NAMES)
def test_ranking_file_round_trip(tmp_path, name):
    folder, ranking = two_names(tmp_path / "data", name)
    score.write(ranking, tmp_path / "ranking.csv")
    assert tree(tmp_path) == sorted(["data", "ranking.csv", *(f"data/{path}" for path in tree(tmp_path / "data"))])
    with open(tmp_path / "ranking.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [n for n in sorted([name, "7"]) for _ in range(4)]
    for one in (rows[:4], rows[4:]):
        keys = [(-float(row["score"]), row["img_path"]) for row in one]
        assert keys == sorted(keys)
    assert {row["img_path"] for row in rows} == set(folder.paths)
    again = score.read(tmp_path / "ranking.csv", folder)
    assert again["img_path"].tolist() == ranking["img_path"].tolist()
    assert again["class"].tolist() == ranking["class"].tolist()
    assert np.array_equal(again["score"].astype(np.float32), ranking["score"].astype(np.float32))
    for criterion in "medium", "top", "min":
        before, after = (select_all(one, folder.classes, 3, criterion, 0) for one in (ranking, again))
        assert before == after


@pytest.mark.parametrize("text, complaint", [
    ("img_path,class\nx/b.png,x\n", "score"),
    ("img_path,class,score\nx/b.png,x,high\n", "line 2.*high"),
    ("img_path,class,score\nx/b.png,x,0.5\nx/c.png,x,\n", "line 3"),
    ("img_path,class,score\nx/b.png,x,nan\n", "line 2"),
    ("img_path,class,score\nx/gone.png,x,0.5\n", "line 2.*x/gone.png"),
    ("img_path,class,score\nx/b.png,y,0.5\n", "line 2.*'y'"),
    ("img_path,class,score\nx/b.png,x,0.5\nx/b.png,x,0.5\n", "x/b.png twice"),
    ("", "ranking.csv"),
    (b"\x89PNG\r\n\x1a\n\xff\xfe\0\0", "ranking.csv"),
])
def test_a_ranking_file_that_does_not_fit(tmp_path, text, complaint):
    folder, _ = two_names(tmp_path / "data", "x")
    path = tmp_path / "ranking.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=complaint) as error:
        score.read(path, folder)
    assert str(path) in str(error.value)
