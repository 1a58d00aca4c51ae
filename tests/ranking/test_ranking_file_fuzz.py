"""Ranking files that nobody can vouch for: read, or refused in one line, and never a way out of the folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CLASSES
from fuzzing import damaged, fuzzed, refused_or
from helpers import gray
from ranking import score
from utils.data.image_folder import ImageFolder

WORDS = st.sampled_from(
    [
        *["ant/ant0.png", "../secret.png", "/etc/passwd", "ant/../../x.png", "moth", "ant"],
        *["1e999", "-inf", "0.5", "NaN", "", '"', "\x00", "a,b", "é"],
    ]
) | st.text(max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / "train"
    for name in CLASSES:
        for number in range(3):
            gray(root / name / f"{name}{number}.png", 10 * number)
    return ImageFolder(root, "--train-dir")


@pytest.fixture
def good(folder):
    """A whole ranking file of the folder's images, and its path; it is read as it was written."""
    path = folder.root.parent / "ranking.csv"
    rows = [f"{image},{image.split('/')[0]},0.{number}" for number, image in enumerate(folder.paths)]
    content = ("img_path,class,score\n" + "\n".join(rows) + "\n").encode()
    path.write_bytes(content)
    table = score.read(path, folder)
    assert table["img_path"].tolist() == folder.paths
    assert table["class"].tolist() == [folder.classes[label] for label in folder.labels]
    assert table["score"].tolist() == [number / 10 for number in range(9)]
    return path, content


@fuzzed
@given(
    st.lists(st.lists(WORDS, max_size=4), max_size=6),
    st.sampled_from(["img_path,class,score\n", "img_path,class\n", "", "\ufeff"]),
)
def test_ranking_files_of_any_words(folder, good, rows, head):
    path, _ = good
    path.write_text(head + "\n".join(",".join(row) for row in rows), encoding="utf-8", errors="replace")
    table = refused_or(lambda: score.read(path, folder))
    assert isinstance(table, str) or set(table["img_path"]) <= set(folder.paths), "nothing outside of the folder"


@fuzzed
@given(st.data())
def test_damaged_ranking_files(folder, good, data):
    path, content = good
    path.write_bytes(data.draw(damaged(content)))
    table = refused_or(lambda: score.read(path, folder))
    assert isinstance(table, str) or set(table["img_path"]) <= set(folder.paths)


@pytest.mark.parametrize(
    "name", ["../outside/x.png", "/etc/hostname", "ant/../../outside/x.png", "ant/../ant/ant0.png"]
)
def test_a_ranking_file_cannot_lead_out_of_the_folder(place, name):
    gray(place / "outside" / "x.png", 3)
    place.works("ranking")
    text = (place / "ranking.csv").read_text()
    (place / "ranking.csv").write_text(text.replace("ant/ant0.png", name, 1))
    outcome = place.run("ranking", output_dir=place / "other")
    assert outcome.code == 2 and name in outcome.err and "not in --train-dir" in outcome.err
    assert not (place / "other").exists()
