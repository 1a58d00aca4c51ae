"""Ranking files that do not fit are one clear line that names them, exit code 2, and nothing written."""

import pytest

from refusals import refused


@pytest.fixture
def ranked(place):
    rows = [
        f"{path.parent.name}/{path.name},{path.parent.name},0.{k}"
        for k, path in enumerate(sorted(place.train.glob("*/*")))
    ]
    (place / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))
    return place


@pytest.mark.parametrize(
    "old, new, named",
    [
        ("ant/ant3.png", "ant/gone.png", ["line 5", "ant/gone.png"]),
        ("ant/ant3.png,ant", "ant/ant3.png,moth", ["line 5", "ant/ant3.png", "moth"]),
        ("ant/ant3.png,ant", "ant/ant3.png,bat", ["line 5", "ant/ant3.png", "bat"]),
        ("ant/ant3.png", "ant/ant4.png", ["ant/ant4.png", "twice"]),
        ("ant,0.3", "ant,high", ["line 5", "high"]),
        ("ant,0.3", "ant,", ["line 5"]),
        ("ant,0.3", "ant,nan", ["line 5", "nan"]),
        (",score", "", ["score"]),
        ("img_path,class,score\n", "", ["img_path"]),
        (",score", ",probability", ["score"]),
    ],
    ids=[
        "no such image",
        "another class",
        "no such class",
        "twice",
        "a word",
        "no score",
        "nan",
        "short header",
        "no header",
        "other columns",
    ],
)
def test_a_ranking_file_that_does_not_fit(ranked, old, new, named):
    path = ranked / "ranking.csv"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    refused(ranked, "ranking", path, *named)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n\xff\xfe", bytes(100), b"\xff\xd8" + bytes(range(256)), b"\n\n"],
    ids=["empty", "png", "zeros", "bytes", "blank"],
)
def test_a_ranking_file_that_is_no_csv(place, content):
    (place / "ranking.csv").write_bytes(content)
    refused(place, "ranking", place / "ranking.csv")


def test_a_ranking_file_without_a_class(ranked):
    path = ranked / "ranking.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "moth" not in line))
    refused(ranked, "ranking", "moth", "0")


def test_a_ranking_file_that_is_a_folder(place):
    (place / "ranking.csv").mkdir()
    refused(place, "ranking", place / "ranking.csv")
