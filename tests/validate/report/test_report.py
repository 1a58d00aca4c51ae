"""python -m validate.report: the files that it leaves."""

import csv
import json
import math
import re

import pytest
from PIL import Image

from conftest import CLASSES, Place, snapshot
from helpers import noise
from result_files import write_result, write_run

FIGURES = ("curves", "loss", "diversity", "time")


def report(run, *words):
    """The report of a run that has to succeed; its page."""
    outcome = Place(run).start("validate.report.__main__", run, *words)
    assert outcome.code == 0, outcome.err
    folder = run / "report"
    return (folder / "report.html").read_text() if folder.exists() else ""


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its report: the folder, what was in it before, and the page."""
    run = tmp_path_factory.mktemp("made") / "run"
    write_run(run)
    before = snapshot(run)
    return run, before, report(run, "--title", "<b>&mine", "--full-hard", "90")


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_files_of_a_report(made):
    run, before, _ = made
    folder = run / "report"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "report.html",
        *(f"{table}.{ending}" for table in ("comparison", "results") for ending in ("md", "csv")),
        "scores.csv",
        *(f"figures/{name}.{ending}" for name in FIGURES for ending in ("png", "csv")),
    }
    for name in FIGURES:
        with Image.open(folder / "figures" / f"{name}.png") as figure:
            assert figure.width > 600
    assert {name: entry for name, entry in snapshot(run).items() if not name.startswith("report")} == before


def test_the_results_of_a_report(made):
    run, _, page = made
    rows = [row for row in table(run / "report" / "results.csv") if row["source"] == "measured"]
    assert [(row["method"], row["protocol"], row["seeds"], row["top1"], row["std"]) for row in rows] == [
        ("delt", "delt", "2", "45.0", "2.12"),
        ("delt", "hard", "1", "31.0", ""),
        ("random", "delt", "1", "9.75", ""),
    ]
    for cell in ("45.00 ± 2.12", "31.00", "9.75"):
        assert f"| {cell} |" in (run / "report" / "results.md").read_text() and f">{cell}</td>" in page


def test_the_page_stands_alone(made):
    page = made[2]
    assert "<title>&lt;b&gt;&amp;mine</title>" in page
    sources = re.findall(r"(?:src|srcset|href)=\"([^\"]*)\"", page)
    assert all(source.startswith(("data:", "#")) for source in sources), "no other file, no network"


def test_the_gallery_shows_each_set_of_each_class(made):
    page = made[2]
    # Two classes; of each the starting images, what became of them, and the other set: ten of twelve images each.
    assert len(re.findall(r"<label title=", page)) == 2 * 3 * 10
    for name in ("ant", "moth"):
        assert f'alt="{name}, delt, IPC 10, position 0, 20 updates"' in page
        assert f'alt="{name}, delt, IPC 10, position 11, 10 updates"' in page
        assert f'alt="{name}, delt, IPC 10: start, position 11"' in page


def test_scores_are_shown_where_the_whole_sets_accuracy_is_given(made):
    # 0.5 * (0.45 - 0.0975) - 0.5 * (0.9 - 0.31) = -0.11875
    expected = (math.exp(-0.11875) - math.exp(-1)) / (math.e - math.exp(-1))
    assert "DD-Ranking" in made[2] and f"<td>{expected:.3f}</td>" in made[2]


def test_the_page_and_the_table_say_that_no_rate_was_searched(made):
    [row] = table(made[0] / "report" / "scores.csv")
    assert row["method"] == "delt" and "none (LRS: not comparable with DD-Ranking's leaderboard)" == row["lr_search"]
    assert "<td>none (LRS: not comparable with DD-Ranking&#39;s leaderboard)</td>" in made[2]
    assert "not comparable with DD-Ranking's leaderboard" in made[2]


@pytest.mark.slow
def test_scores_of_an_earlier_report_do_not_stay(run):
    report(run, "--full-hard", "90")
    assert (run / "report" / "scores.csv").exists()
    report(run)
    assert not (run / "report" / "scores.csv").exists()


@pytest.mark.slow
def test_the_gallery_can_be_small(run):
    page = report(run, "--classes", "1", "--images", "2")
    assert len(re.findall(r"<label title=", page)) == 1 * 3 * 2
    assert "position 11" in page and "position 1," not in page
    assert "DD-Ranking" not in page, "nobody knows the whole set's accuracy"


@pytest.mark.slow
def test_the_page_goes_where_it_is_asked_for(run):
    assert report(run, "--output-dir", run.parent / "page") == ""
    assert (run.parent / "page" / "report.html").is_file() and not (run / "report").exists()


def test_a_report_of_sets_that_are_gone(tmp_path):
    write_result(tmp_path, syn_dir="/nowhere/syn")
    page = report(tmp_path)
    assert "no longer" in page and "validate.report.diversity" in page and "<label title=" not in page
    assert not (tmp_path / "report" / "figures" / "diversity.png").exists()


def test_a_report_without_curves_and_seconds_has_its_tables_and_no_such_figures(tmp_path):
    path = write_result(tmp_path, syn_dir="/nowhere/syn")
    content = json.loads(path.read_text())
    for student in content["seeds"]:
        student.update(curve=[], seconds=0.0)
    path.write_text(json.dumps(content))
    page = report(tmp_path)
    assert "42.00 ± 2.83" in page and "No result has such a curve." in page and "No seconds are known." in page
    assert not list((tmp_path / "report").glob("figures/*"))


@pytest.mark.slow
def test_a_report_of_sets_without_manifests(tmp_path):
    noise(tmp_path / "syn" / "ant" / "a.png", 0)
    write_result(tmp_path)
    assert "ant, delt, IPC 10, position 0" in report(tmp_path)


@pytest.mark.parametrize(
    "words, message",
    [(["--classes", "0"], "--classes"), (["--full-hard", "much"], "--full-hard"), (["--output-dir", "a.txt"], "a.txt")]
    # Nobody has 9000 percent, and less than one is a fraction.
    + [(["--full-hard", word], "is not from 1 to 100 percent") for word in ("0", "0.9", "conv3=9000")],
)
def test_what_cannot_be(run, words, message, monkeypatch):
    monkeypatch.chdir(run)
    (run / "a.txt").write_text("a file")
    before = snapshot(run)
    outcome = Place(run).start("validate.report.__main__", run, *words)
    assert outcome.code == 2 and message in outcome.err and snapshot(run) == before


def test_curves_of_an_earlier_report_do_not_stay_beside_this_one(run):
    for name in ("curves_delt.png", "loss_hard.csv", "mine.png"):
        (run / "report" / "figures").mkdir(parents=True, exist_ok=True)
        (run / "report" / "figures" / name).write_text("")
    report(run)
    left = {path.name for path in (run / "report" / "figures").iterdir()}
    assert {"curves.png", "loss.csv", "mine.png"} <= left and not {"curves_delt.png", "loss_hard.csv"} & left


def test_diversity_of_an_earlier_report_does_not_stay_beside_this_one(run):
    figures = run / "report" / "figures"
    figures.mkdir(parents=True)
    for name in ("diversity.png", "diversity.csv", "diversity_of_mine.png"):
        (figures / name).write_text("")
    (run / "diversity.csv").unlink()
    report(run)
    assert {path.name for path in figures.glob("diversity*")} == {"diversity_of_mine.png"}


def test_a_damaged_result_is_named(run):
    (run / "results" / "x.json").write_text("3")
    outcome = Place(run).start("validate.report.__main__", run)
    assert outcome.code == 2 and "results/x.json" in outcome.err and not (run / "report").exists()


def test_what_is_damaged_beside_the_results_costs_no_page(run):
    """A start that is not finished, a manifest and a table of diversity: each is named in one line, and left out."""
    (run / "init" / "manifest.json").write_text('{"settings": {}, "finished": false}')
    (run / "random" / "manifest.json").write_text("[]")
    (run / "diversity.csv").write_text("a,b\n")
    outcome = Place(run).start("validate.report.__main__", run)
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    for words in (["diversity.csv"], ["random/manifest.json"], ["delt, IPC 10: start", "run/init: is not complete"]):
        assert sum(all(word in line for word in words) for line in lines) == 1, outcome.out
    assert len(lines) == 3
    page = (run / "report" / "report.html").read_text()
    assert len(re.findall(r"<label title=", page)) == 2 * 2 * 10, "two sets of two classes, without the start"
    assert "45.00 ± 2.12" in page and not (run / "report" / "figures" / "diversity.png").exists()


def test_a_damaged_image_costs_its_line_of_the_gallery(run):
    """The page is written whole otherwise: of six lines of ten pictures one is missing."""
    damaged = sorted((run / "init").glob("*/*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    outcome = Place(run).start("validate.report.__main__", run)
    assert outcome.code == 0, outcome.err
    [line] = [line for line in outcome.out.splitlines() if line.startswith("left out: ")]
    assert f"delt, IPC 10: start, class {damaged.parent.name}" in line and damaged.name in line
    page = (run / "report" / "report.html").read_text()
    assert len(re.findall(r"<label title=", page)) == (2 * 3 - 1) * 10, "three sets of two classes"
    assert "45.00 ± 2.12" in page


@pytest.mark.slow
def test_the_report_of_what_the_stages_wrote(place):
    """Two protocols of two sets, one of them recovered, and their diversity."""
    place.works("recover", contact_sheet=place / "sheet.png")
    place.works(
        "validate",
        syn_dir=[place.syn, place.init],
        method=["delt", "medium"],
        protocol=["delt", "hard"],
        epochs=2,
        seeds=2,
        output_dir=place / "run",
    )
    line = dict(train_dir=None, ranking_file=None, ipc=None, output_dir=place / "run", method=["delt", "medium"])
    outcome = place.start("validate.report.diversity", place.syn, place.init, *place.command("ranking", **line))
    assert outcome.code == 0, outcome.err
    page = report(place / "run")
    changed = "delt iterations=8 round_iterations=2"  # the name that was given, and what it does not say
    rows, stored = table(place / "run" / "report" / "results.csv"), table(place / "run" / "results.csv")
    assert [(row["method"], row["protocol"], row["seeds"]) for row in rows] == [
        (method, f"{protocol} epochs=2", "2") for method in (changed, "medium") for protocol in ("delt", "hard")
    ]
    for row in rows:
        names = row["method"], row["protocol"]
        first, second = (float(one["top1"]) for one in stored if (one["method"], one["protocol"]) == names)
        assert float(row["top1"]) == pytest.approx((first + second) / 2, abs=0.011)
        assert float(row["std"]) == pytest.approx(abs(first - second) / math.sqrt(2), abs=0.011)
    assert len(re.findall(r"<label title=", page)) == 3 * 3 * 4
    for name in CLASSES:
        assert f"{name}, {changed}, IPC 4, position 0, 8 updates" in page
        assert f"{name}, {changed}, IPC 4, position 3, 2 updates" in page
    assert (place / "run" / "report" / "figures" / "diversity.png").is_file()
    outcome = place.start("validate.report.summary", place / "run")
    assert outcome.code == 0 and "delt epochs=2" in outcome.out
