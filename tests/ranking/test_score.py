"""Scores, and the ranking file that holds them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import CPU, gray, tree
from ranking import score
from ranking.criteria import CRITERIA, Candidates
from ranking.crops import BOX, Crops, as_they_are
from ranking.score import PIECE, Scorer
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.run.errors import UserError
from utils.run.shared_work import SharedWork

NAMES = ["NA", "null", "001", "1", "nan", "True", "a, b", 'say "hi"', " lead and trail ", "käse 猫", "1e5", "#x"]


class Brightness(torch.nn.Module):
    """Two logits: the image's brightness, 0 to 1, and a half."""

    seen = 0

    def forward(self, x):
        self.seen += len(x)
        bright = x.mean((1, 2, 3))
        return torch.stack([bright, torch.full_like(bright, 0.5)], 1)


def images_of(root, names):
    """Class k gets greys 10, 200 and 90, and 90 once more under a later name."""
    for name in names:
        for file, value in ((f"{name}.png", 10), ("b.png", 200), ("c.png", 90), ("d.png", 90)):
            gray(root / name / file, value)
    return ImageFolder(root, "--train-dir")


def scorer(batch_size=3):
    geometry = Geometry(input_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=2, classes=None, stem="cifar")
    return Scorer(Brightness(), geometry, CPU, batch_size, workers=0)


def scored(root, names):
    folder = images_of(root, names)
    return folder, scorer().score(folder, root.parent / ".parts", {})


def test_scores_are_the_probability_of_the_true_class(tmp_path):
    _, ranking = scored(tmp_path / "data", ["x", "y"])
    assert list(ranking.columns) == ["img_path", "class", "score"]
    # softmax of (v / 255, 1 / 2): the darker, the more it is class 1.
    assert ranking["img_path"].tolist() == [
        *("x/b.png", "x/c.png", "x/d.png", "x/x.png"),
        *("y/y.png", "y/c.png", "y/d.png", "y/b.png"),
    ]
    of_x = [1 / (1 + 2.718281828459045 ** (0.5 - v / 255)) for v in (200, 90, 90, 10)]
    assert ranking["score"].tolist() == pytest.approx(of_x + [1 - value for value in reversed(of_x)], rel=1e-5)


def test_equally_scored_crops_of_an_image_stand_by_number(tmp_path):
    """Images of one grey: all crops of one score alike, and the selection takes what comes first."""
    crops = Crops(images_of(tmp_path / "data", ["x", "y"]), 4, 8, 0)
    table = replace(scorer(), resize=as_they_are).score(crops, tmp_path / ".parts", {})
    found = list(table[["img_path", *BOX]].itertuples(index=False, name=None))
    drawn = [(tile.path, *tile.box) for label in range(2) for tile in crops.tiles(label)]
    assert len(set(drawn)) > len(drawn) / 2
    for path in dict.fromkeys(crops.paths):
        assert [row for row in found if row[0] == path] == [row for row in drawn if row[0] == path]


class Overflowing(Brightness):
    """No numbers for what is dark."""

    def forward(self, x):
        return super().forward(x).masked_fill(x.mean((1, 2, 3))[:, None] < 0.1, float("inf"))


@pytest.mark.parametrize("precision, advice", [("fp32", "give another teacher"), ("bf16", "give --precision fp32, or")])
def test_an_image_whose_score_is_no_number_is_named(tmp_path, precision, advice):
    folder = images_of(tmp_path / "data", ["x", "y"])
    one = replace(scorer(1), network=Overflowing(), runtime=replace(CPU, precision=precision))
    # The dark one of y is in the second piece.
    with pytest.raises(UserError, match=f"data/y/y.png: the teacher's score .*{precision}.*; {advice}"):
        one.score(folder.taking([*range(3), *range(4, 8)]), tmp_path / ".parts", {})


def test_what_is_scored_already_is_not_scored_again(tmp_path):
    """A killed process loses the piece that it was at, and no other."""
    folder = images_of(tmp_path / "data", ["x", "y"])
    first = scorer(batch_size=1)
    whole = first.score(folder, tmp_path / ".parts", {"of": "these"})
    assert first.network.seen == 8
    sorted((tmp_path / ".parts").glob("*.json"))[1].unlink()
    second = scorer(batch_size=1)
    assert second.score(folder, tmp_path / ".parts", {"of": "these"}).equals(whole)
    assert second.network.seen == min(PIECE, 8 - PIECE)
    third = scorer(batch_size=1)
    third.score(folder, tmp_path / ".parts", {"of": "others"})
    assert third.network.seen == 8, "scores of other images, or by another teacher, are no scores of these"


def test_while_others_score_the_rest_there_is_no_table(tmp_path):
    folder = images_of(tmp_path / "data", ["x", "y"])
    parts = tmp_path / ".parts"
    with SharedWork(parts, {}, 2) as other:
        piece = next(other.take())
        one = scorer(batch_size=1)
        assert one.score(folder, parts, {}) is None
        assert one.network.seen == 8 - PIECE, "the other's piece is left to it"
        other.save(piece, {"scores": [0.5] * PIECE})
    table = scorer(batch_size=1).score(folder, parts, {})
    assert (table["score"] == 0.5).sum() == PIECE, "what the other process found is used as it is"


@pytest.mark.parametrize(
    "spoil", [lambda text: text[:-20], lambda text: text.replace("0.", "1.", 1), lambda text: "[]"]
)
def test_a_damaged_piece_is_scored_again(tmp_path, spoil, capsys):
    folder = images_of(tmp_path / "data", ["x", "y"])
    whole = scorer().score(folder, tmp_path / ".parts", {})
    path = sorted((tmp_path / ".parts").glob("*.json"))[0]
    json.loads(path.read_text())
    path.write_text(spoil(path.read_text()))
    assert scorer().score(folder, tmp_path / ".parts", {}).equals(whole)
    assert str(path) in capsys.readouterr().out


def two_names(root, name):
    return scored(root, [name, "7"])  # beside it, 001 or 1e5 could pass for numbers


@pytest.mark.parametrize("name", NAMES)
def test_ranking_file_round_trip(tmp_path, name):
    folder, ranking = two_names(tmp_path / "data", name)
    score.write(ranking, tmp_path / "ranking.csv")
    assert [path for path in tree(tmp_path) if "/" not in path] == [".parts", "data", "ranking.csv"]
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
        before, after = (selected(one, name, criterion) for one in (ranking, again))
        assert before == after


def selected(table, name, criterion):
    rows = table[table["class"] == name]
    images = Candidates(rows["img_path"].tolist(), (), rows["score"].tolist())
    return [images.paths[index] for index in CRITERIA[criterion].choose(images, 3)]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("img_path,class\nx/b.png,x\n", "score"),
        ("img_path,class,score\nx/b.png,x,high\n", "line 2.*high"),
        ("img_path,class,score\nx/b.png,x,0.5\nx/c.png,x,\n", "line 3"),
        ("img_path,class,score\nx/b.png,x,nan\n", "line 2"),
        ("img_path,class,score\nx/gone.png,x,0.5\n", "line 2.*x/gone.png"),
        ("img_path,class,score\nx/b.png,y,0.5\n", "line 2.*'y'"),
        ("img_path,class,score\nx/b.png,x,0.5\nx/b.png,x,0.5\n", "x/b.png twice"),
        ("", "ranking.csv"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\0\0", "ranking.csv"),
    ],
)
def test_a_ranking_file_that_does_not_fit(tmp_path, text, complaint):
    folder, _ = two_names(tmp_path / "data", "x")
    path = tmp_path / "ranking.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=complaint) as error:
        score.read(path, folder)
    assert str(path) in str(error.value)
