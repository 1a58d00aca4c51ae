"""The report: what it collects, how it is scored, and the files it leaves."""
import csv
import json
import math
import re

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from conftest import CLASSES, snapshot
from utils.files import UserError
from validate import collect, diversity, figures, published, report, scores


def stored(run, method="delt", protocol="delt", seeds=((0, 40.0), (1, 44.0)), name=None, **facts):
    """A result file as validate writes it, of a run that never was."""
    facts = {"dataset": "cifar10", "ipc": 10, "teacher": "resnet18", "student": "resnet18", "epochs": 3, "method": method,
             "protocol": protocol, "syn_dir": str(run / "syn"), **facts}
    content = {**facts, "settings": {"method": method, "protocol": protocol, **facts}, "arguments": {},
               "seeds": [{"seed": seed, "top1": top1, "best_top1": top1 + 1, "top5": 90.0, "seconds": 5.0,
                          "curve": [{"epoch": 1, "loss": 0.5}, {"epoch": 3, "loss": 0.1, "top1": top1}]}
                         for seed, top1 in seeds]}
    path = run / "results" / f"{name or method + protocol}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_label_robust_score():
    # w (syn - random) - (1 - w) (full - hard) = 0.5 * 0.1 - 0.5 * 0.4 = -0.15
    expected = (math.exp(-0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.label_robust(0.5, 0.4, 0.9, 0.5) == pytest.approx(expected)
    assert scores.label_robust(1, 0, 0.7, 0.7, weight=1) == pytest.approx(1)
    assert scores.label_robust(0, 0, 1, 0, weight=0) == pytest.approx(0)


def test_augmentation_robust_score():
    expected = (math.exp(0.5 * 0.1 + 0.5 * -0.2) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.augmentation_robust(0.5, 0.4, 0.1, 0.3) == pytest.approx(expected)


def test_seeds_of_several_runs_are_one_result(tmp_path):
    stored(tmp_path / "a", seeds=((0, 40.0), (1, 44.0)), syn_dir="s")
    stored(tmp_path / "b", seeds=((1, 99.0), (2, 42.0)), syn_dir="s")
    [entry] = collect.read([tmp_path / "a", tmp_path / "b"])
    assert entry.top1 == [40.0, 44.0, 42.0], "a seed counts once, as it was met first"
    row = collect.table([entry]).iloc[0]
    assert (row["top1"], row["std"], row["seeds"], row["source"]) == (42.0, 2.0, 3, "measured")


def test_published_figures_stand_beside_and_are_marked(tmp_path):
    stored(tmp_path, syn_dir="s")
    stored(tmp_path, student="conv3", name="conv3", syn_dir="s")
    table = collect.table(collect.read([tmp_path]))
    known = table[table["source"] == "published"]
    assert dict(zip(known["method"], known["top1"])) == {"SRe2L": 29.3, "RDED": 37.1, "DELT": 43.0}
    assert set(known["student"]) == {"resnet18"} and known["seeds"].isna().all()
    assert published.beside("cifar10", 10, "conv3", "conv3") == published.beside("mine", 10, "resnet18", "resnet18") == {}


def test_scores_need_what_they_are_made_of(tmp_path):
    stored(tmp_path, "delt", "delt", ((0, 50.0),))
    stored(tmp_path, "random", "delt", ((0, 40.0),))
    measured = collect.read([tmp_path])
    assert collect.ranking(measured, 90.0).empty
    stored(tmp_path, "delt", "hard", ((0, 30.0),))
    stored(tmp_path, "random", "hard", ((0, 20.0),))
    stored(tmp_path, "random", "noaug", ((0, 35.0),))
    ranking = collect.ranking(collect.read([tmp_path]), 90.0).set_index("method")
    assert ranking.loc["delt", "LRS"] == pytest.approx(scores.label_robust(0.5, 0.4, 0.9, 0.3))
    assert ranking.loc["random", "LRS"] == pytest.approx(scores.label_robust(0.4, 0.4, 0.9, 0.2))
    assert pd.isna(ranking.loc["delt", "ARS"]) and ranking.loc["random", "ARS"] == pytest.approx(0.2689, abs=1e-4)
    assert collect.ranking(collect.read([tmp_path]), None)["LRS"].isna().all(), "nobody knows the whole set's accuracy"


@pytest.fixture
def measured(place):
    """Two protocols of two sets, one of them recovered, and their diversity."""
    place.works("recover", contact_sheet=place / "sheet.png")
    place.works("validate", syn_dir=[place.syn, place.init], method=["delt", "medium"], protocol=["delt", "hard"], epochs=2,
                seeds=2, output_dir=place / "run")
    words = place.command("ranking", train_dir=None, ranking_file=None, ipc=None, output_dir=place / "run",
                          method=["delt", "medium"])
    assert place.start("validate.diversity", place.syn, place.init, *words).code == 0
    return place


def test_the_files_of_a_report(measured):
    before = snapshot(measured / "run")
    outcome = measured.start("validate.report", measured / "run")
    assert outcome.code == 0, outcome.err
    folder = measured / "run" / "report"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "report.html", "results.md", "results.csv", *(f"figures/{name}.png" for name in ("curves", "loss", "diversity", "time"))}
    for path in (folder / "figures").iterdir():
        assert Image.open(path).width > 600
    assert {name: entry for name, entry in snapshot(measured / "run").items() if not name.startswith("report")} == before

    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [(row["method"], row["protocol"], row["seeds"]) for row in rows] == [
        (method, f"{protocol} epochs=2", "2") for method in ("delt", "medium") for protocol in ("delt", "hard")]
    stored_rows = list(csv.DictReader((measured / "run" / "results.csv").open()))
    for row in rows:
        top1 = [float(one["top1"]) for one in stored_rows if (one["method"], one["protocol"]) == (row["method"], row["protocol"])]
        assert float(row["top1"]) == pytest.approx(sum(top1) / 2, abs=0.011)
        assert float(row["std"]) == pytest.approx(abs(top1[0] - top1[1]) / math.sqrt(2), abs=0.011)
        cell = f"{float(row['top1']):.2f} ± {float(row['std']):.2f}"
        assert f"| {cell} |" in (folder / "results.md").read_text() and cell in (folder / "report.html").read_text()


def test_the_page_stands_alone(measured):
    assert measured.start("validate.report", measured / "run", "--title", "<b>&mine", "--output-dir", measured / "page").code == 0
    page = (measured / "page" / "report.html").read_text()
    assert "<title>&lt;b&gt;&amp;mine</title>" in page
    sources = re.findall(r"(?:src|srcset|href)=\"([^\"]*)\"", page)
    assert all(source.startswith(("data:", "#")) for source in sources), "no other file, no network"
    # Three classes; of each the starting images, what became of them, and the other set: four images each.
    assert page.count("<h3>") == 3 + page.count("<h3>DD") and len(re.findall(r"<label ", page)) == 3 * 3 * 4
    assert all(f"{name}, delt, IPC 4, rank 0, 8 updates" in page for name in CLASSES)
    assert all(f"{name}, delt, IPC 4, rank 3, 2 updates" in page for name in CLASSES)


@pytest.mark.parametrize("name", ["ours", "a set with a long name that says much", "x" * 60])
@pytest.mark.parametrize("count", [1, 3, 9, 24])
def test_legends_fit_into_their_figures(name, count):
    """Drawn to the last: what sticks out would be cut off."""
    names = [f"{name} {k}" for k in range(count)]
    curve = [[{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]]
    rows = pd.DataFrame([{"method": one, "class": label, "similarity": 0.5} for one in names for label in "ab"])
    for figure in (figures.curves([(one, curve) for one in names], "loss", "loss"), figures.diversity(rows),
                   figures.stages({one: {"ranking": 60.0, "recover": 120.0} for one in names})):
        figure.set_layout_engine("constrained")
        figure.canvas.draw()
        [legend] = figure.legends
        box, page = legend.get_window_extent(), figure.bbox
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y1 <= page.y1 + 1
        axes = figure.axes[0].get_window_extent()
        assert box.y0 >= axes.y1, "above the axes, not over them"
        assert axes.height > figure.dpi * 0.3 * min(count, 5), "and does not take their place"
        plt.close(figure)


@pytest.mark.parametrize("init, shown", [("images", True), ("noise", False)])
def test_a_set_from_noise_has_no_starting_images(place, init, shown):
    """Its --init-dir only names the classes."""
    place.works("recover", init=init, ipc=4)
    assert (collect.start_of(place.syn) == place.init) == shown


def test_each_of_many_curves_has_a_look_of_its_own():
    figure = figures.curves([(str(k), [[{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]]) for k in range(24)], "loss", "loss")
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 24
    plt.close(figure)


def test_the_gallery_can_be_small(measured):
    assert measured.start("validate.report", measured / "run", "--classes", "2", "--images", "1").code == 0
    page = (measured / "run" / "report" / "report.html").read_text()
    assert len(re.findall(r"<label ", page)) == 2 * 3 * 1


def test_a_report_of_sets_that_are_gone(tmp_path, capsys, monkeypatch):
    stored(tmp_path, syn_dir="/nowhere/syn")
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    report.main()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "no longer" in page and "validate.diversity" in page and "<label " not in page


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"seeds": []}'])
def test_a_run_without_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "x.json").write_text(content)
    with pytest.raises(UserError, match="results|result of|JSON"):
        collect.read([tmp_path])


@pytest.mark.parametrize("content", ["", "method,class\na,b\n", "\x00\x01", ",".join(diversity.COLUMNS) + "\na,b,1,high,c,d\n"])
def test_a_strange_table_of_diversity(tmp_path, content):
    (tmp_path / "diversity.csv").write_text(content)
    with pytest.raises(UserError, match="validate.diversity"):
        diversity.read(tmp_path / "diversity.csv")
