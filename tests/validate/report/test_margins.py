"""Margins over random images: which results were measured alike, and what the difference is, worked out by hand."""

import json
import math

import pytest
from compared_run import SOFT, make_run, measured, rows_of, table

from result_files import DIGEST, write_result
from validate.report import collect, comparison


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


def test_margin_and_its_deviation(run):
    rows = table(run)
    row = rows["delt", "delt"]
    assert (row["top1"], row["top1_std"], row["margin"]) == (46.0, 2.0, 46.0 - 41.5)
    # Variances 4 over 3 seeds and 4.5 over 2.
    assert row["margin_std"] == pytest.approx(math.sqrt(4 / 3 + 4.5 / 2))
    row = rows["delt", "hard"]
    assert row["margin"] == -2.0 and math.isnan(row["margin_std"]) and math.isnan(row["top1_std"]), "a single seed"
    assert all(math.isnan(rows["random", protocol]["margin"]) for protocol in ("delt", "hard"))


@pytest.mark.parametrize("changes", [dict(processes=8), dict(images=5)], ids=str)
def test_more_images_or_other_processes_are_not_measured_alike(run, changes):
    alike = dict(processes=1, images=4)
    measured(run, "delt", "cda", (50.0, 52.0), {"lr": 1}, **alike)
    measured(run, "random", "cda", (40.0, 43.0), {"lr": 1}, **alike)
    assert table(run)["delt", "cda"]["margin"] == 51.0 - 41.5
    measured(run, "delt", "cda", (50.0, 52.0), {"lr": 1}, **{**alike, **changes})
    assert math.isnan(table(run)["delt", "cda"]["margin"])


def test_students_whose_number_of_processes_changed_are_compared_with_nothing(run):
    """Even where the random images' were resumed as well: nobody knows after how many epochs."""
    for method, top1 in (("delt", (50.0, 52.0)), ("random", (40.0, 43.0))):
        measured(run, method, "cda", top1, {"lr": 1}, processes=[1, 8])
    assert table(run)["delt", "cda"]["top1"] == 51.0 and math.isnan(table(run)["delt", "cda"]["margin"])


def test_only_what_was_measured_alike_is_compared(run):
    measured(run, "cda", "delt", (50.0, 52.0), {**SOFT, "lr": 0.5}, syn_dir=str(run / "delt"))
    measured(run, "sre2l", "delt", (50.0, 52.0), ipc=50, syn_dir=str(run / "delt"))
    rows = table(run)
    assert math.isnan(rows["cda", "delt"]["margin"]) and math.isnan(rows["sre2l", "delt"]["margin"])
    assert rows["delt", "delt"]["margin"] == 4.5


def test_a_line_says_why_random_images_are_no_baseline(run, capsys):
    measured(run, "cda", "delt", (50.0,), {**SOFT, "lr": 0.7}, syn_dir=str(run / "delt"))
    assert math.isnan(table(run)["cda", "delt"]["margin"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("no margin of cda, IPC 2, resnet18, delt over random images") and line.endswith(
        ": lr: 0.001 -> 0.7"
    )


def test_how_often_students_were_tested_is_no_difference(run):
    """The same seeds count once, with the finer curve; others have a row, and a margin as well."""
    fine = {"seeds": ((0, 44.0), (1, 46.0)), "settings": {**SOFT, "evaluations": 30}}
    curve = [{"epoch": epoch, "loss": 0.1, "top1": 40.0} for epoch in range(1, 31)]
    place = dict(syn_dir=str(run / "delt"), ipc=2, epochs=30)
    path = write_result(run, "delt", "delt", **fine, **place, name="fine")
    for seeds in ([(0, 44.0), (1, 46.0)], [(0, 44.0), (7, 48.0)]):
        content = json.loads(path.read_text())
        for student, (seed, top1) in zip(content["seeds"], seeds):
            student.update(seed=seed, top1=top1, curve=curve)
        path.write_text(json.dumps(content))
        rows = comparison.table(collect.read([run]))
        rows = rows[(rows["method"] == "delt") & (rows["protocol"] == "delt")]
        if seeds[1][0] == 1:
            assert rows[["name", "seeds", "margin"]].to_numpy().tolist() == [["delt", 3, 4.5]]
    assert sorted(zip(rows["name"], rows["seeds"], rows["margin"])) == [
        ("delt (1 evaluations)", 3, 4.5),
        ("delt (30 evaluations)", 2, 4.5),
    ]
    content = json.loads(path.read_text())
    again = [dict(content["seeds"][0], seed=seed) for seed in range(3)]
    path.write_text(json.dumps({**content, "seeds": again}))
    [found] = [one for one in collect.read([run]) if (one.method, one.protocol) == ("delt", "delt")]
    assert {student.evaluations for student in found.seeds.values()} == {30}


def test_of_two_random_sets_none_is_the_baseline_as_a_line_says(run, capsys):
    measured(run, "random", "delt", (1.0,), syn_dir=str(run / "again"), name="again")
    assert math.isnan(table(run)["delt", "delt"]["margin"])
    table(run)
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("no margin over random images") and line.endswith(f": {run / 'again'}, {run / 'random'}")


def test_random_images_that_were_drawn_anew_take_the_place_of_the_earlier_ones(run, capsys):
    """The result of the earlier draw stays beside that of the images which are there."""
    measured(run, "random", "delt", (1.0,), settings={**SOFT, "images": "x"}, name="again", set=DIGEST)
    assert table(run)["delt", "delt"]["margin"] == 4.5 and capsys.readouterr().out == ""


def test_collages_are_compared_with_whole_images_where_the_protocol_leaves_the_tiles_to_the_set(run):
    of_set = {**SOFT, "tiles_of_set": True}
    place = dict(syn_dir=str(run / "delt"))
    measured(run, "random", "own", (40.0, 42.0), of_set)
    measured(run, "collages", "own", (50.0, 52.0), {**of_set, "tiles": 2, "tile_share": 0.5}, **place)
    measured(run, "others", "own", (50.0, 52.0), {**SOFT, "tiles": 2}, **place)
    rows = table(run)
    assert rows["collages", "own"]["margin"] == 10.0 and math.isnan(rows["others", "own"]["margin"])


def test_square_images_are_compared_with_photographs_of_which_the_middle_is_shown(run):
    measured(run, "delt", "noaug", (40.0, 44.0))
    measured(run, "random", "noaug", (30.0, 30.0), {**SOFT, "whole_images": "the square in the middle"})
    assert table(run)["delt", "noaug"]["margin"] == 12.0


def test_random_images_of_another_number_are_no_baseline(run):
    """Settings say nothing of the IPC, and many protocols have one batch for several."""
    measured(run, "delt", "delt", (80.0, 82.0), ipc=4, name="delt 4")
    assert math.isnan(rows_of(run)["delt", "delt", 4]["margin"])
    measured(run, "random", "delt", (60.0, 62.0), ipc=4, name="random 4")
    rows = rows_of(run)
    assert rows["delt", "delt", 4]["margin"] == 20.0 and rows["delt", "delt", 2]["margin"] == 4.5


def test_a_rate_that_was_searched_for_is_a_sets_own(run):
    searched = {**SOFT, "lr_search": [0.001, 0.003]}
    measured(run, "delt", "delt lr=search", (50.0, 52.0), {**searched, "lr": 0.003})
    measured(run, "random", "delt lr=search", (41.0, 43.0), {**searched, "lr": 0.001})
    rows = table(run)
    assert rows["delt", "delt lr=search"]["margin"] == 9.0 and rows["delt", "delt"]["margin"] == 4.5
