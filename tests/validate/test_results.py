"""Results: one JSON a run and one row a seed, whatever happens between the two."""

import contextlib
import csv
import json
import os
from dataclasses import replace

import pytest

from helpers import tree
from result_files import COLUMNS
from utils.run.errors import UserError
from validate import results
from validate.results import Result, Run

FACTS = {
    "dataset": "cifar10",
    "method": 'mine, "new"',
    "ipc": 10,
    "teacher": "resnet18",
    "student": "conv3",
    "protocol": "delt",
    "epochs": 300,
    "syn_dir": "runs/é x/syn",
}


def result(seed, top1=43.0):
    return Result(seed, top1, top1 + 0.5, 91.0, 12.34, [{"epoch": 1, "loss": 0.5, "top1": top1}])


def lines(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_results_are_one_row_a_seed(tmp_path):
    run = Run(tmp_path, {"lr": 0.001}, FACTS)
    run.add(result(0))
    run.add(result(1, 44.126))
    header, *rows = lines(tmp_path)
    assert ",".join(header) == COLUMNS
    same = ["cifar10", 'mine, "new"', "10", "resnet18", "conv3", "delt"]
    assert [row[:-1] for row in rows] == [
        [*same, "0", "43.00", "43.50", "91.00", "300", "12.3", "runs/é x/syn"],
        [*same, "1", "44.13", "44.63", "91.00", "300", "12.3", "runs/é x/syn"],
    ]
    assert [row["top1"] for row in results.read_rows(tmp_path / "results.csv")] == ["43.00", "44.13"]


def test_an_unfinished_student_of_other_settings_is_named(tmp_path, capsys):
    """Of another teacher, for one: nobody would train it to its end, or remove its state."""
    place = tmp_path / "results"
    place.mkdir()

    def claimed(**changes):
        with Run.claimed(tmp_path, {"lr": 0.001}, {**FACTS, **changes}) as run:
            return run.path.stem, capsys.readouterr().out

    stem, said = claimed()
    (place / f".{stem}_seed0.state").touch()  # its own
    (place / f".{stem[:-8]}epochs_100_0123abcd_seed0.state").touch()  # of another protocol
    assert said == claimed()[1] == ""
    left = place / f".{stem[:-8]}0123abcd_seed1.state"
    left.touch()
    assert f"{left}: an unfinished student of other settings" in claimed()[1]


def test_the_same_run_is_found_again_and_another_one_is_not(tmp_path):
    run = Run(tmp_path, {"lr": 0.001}, FACTS)
    run.add(result(0))
    run.add(result(1, 44.126))
    assert Run(tmp_path, {"lr": 0.001}, FACTS).results == {0: result(0), 1: result(1, 44.126)}
    other = Run(tmp_path, {"lr": 0.002}, FACTS)
    assert other.results == {}
    other.add(result(0, 50.0))
    assert len(lines(tmp_path)) == 4
    assert len(list((tmp_path / "results").iterdir())) == 2
    assert not [name for name in tree(tmp_path) if "partial" in name]


def test_a_student_of_several_numbers_of_processes_is_found_again(tmp_path):
    changed = replace(result(0), processes=[1, 4])
    Run(tmp_path, {}, FACTS).add(changed)
    run = Run(tmp_path, {}, FACTS)
    assert run.results == {0: changed} and len(lines(tmp_path)) == 2
    content = json.loads(run.path.read_text())
    content["seeds"][0]["processes"] = [1, "four"]
    run.path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=run.path.name):
        Run(tmp_path, {}, FACTS)


def test_rows_of_different_settings_are_told_apart(tmp_path):
    """Readers average rows of one digest only."""
    for lr in (0.001, 0.002):
        for seed in range(2):
            Run(tmp_path, {"lr": lr}, FACTS).add(result(seed))
    digests = [row["settings"] for row in results.read_rows(tmp_path / "results.csv")]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    assert all(len(digest) >= 12 for digest in digests)


def test_the_json_holds_everything_of_a_run(tmp_path):
    run = Run(tmp_path, {"lr": 0.001}, FACTS)
    run.add(result(1, 44.0), versions={"torch": "2"})
    run.add(result(0), versions={"torch": "2"})
    content = json.loads(run.path.read_text(encoding="utf-8"))
    assert {name: content[name] for name in FACTS} == FACTS
    assert content["settings"] == {"lr": 0.001} and content["versions"] == {"torch": "2"}
    assert [entry["seed"] for entry in content["seeds"]] == [0, 1]
    assert content["seeds"][1]["curve"] == [{"epoch": 1, "loss": 0.5, "top1": 44.0}]
    assert content["top1_mean"] == 43.5


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_killed_run_has_one_row_a_seed_in_the_end(tmp_path, monkeypatch, last):
    """Killed after `last` of the files that a seed replaces."""
    Run(tmp_path, {}, FACTS).add(result(0))
    replace, done = os.replace, []

    def killed(*paths):
        if len(done) == last:
            raise KeyboardInterrupt
        done.append(replace(*paths))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            Run(tmp_path, {}, FACTS).add(result(1))
    # What validate does when it is started again.
    run = Run(tmp_path, {}, FACTS)
    for seed in range(3):
        if seed not in run.results:
            run.add(result(seed))
    assert sorted(row["seed"] for row in results.read_rows(tmp_path / "results.csv")) == ["0", "1", "2"]
    assert sorted(Run(tmp_path, {}, FACTS).results) == [0, 1, 2]


def test_a_run_is_one_process_s_and_other_runs_of_the_folder_are_not(tmp_path):
    with Run.claimed(tmp_path, {"lr": 0.001}, FACTS) as run:
        with pytest.raises(UserError, match="is writing there"), Run.claimed(tmp_path, {"lr": 0.001}, FACTS):
            pass
        with Run.claimed(tmp_path, {"lr": 0.002}, FACTS) as other:
            other.add(result(1))
        run.add(result(0))
    with Run.claimed(tmp_path, {"lr": 0.001}, FACTS) as run:
        assert list(run.results) == [0], "what was stored is seen"
    assert len(lines(tmp_path)) == 3
    assert not list(tmp_path.rglob(".*"))


EARLIER = COLUMNS.removesuffix(",settings")
EARLIER_ROW = "cifar10,delt,10,resnet18,conv3,delt,7,41.00,42.00,90.00,300,9.9,runs/syn"


def test_what_earlier_versions_did_not_say_is_added_once_the_run_is_found_again(tmp_path):
    facts = {**FACTS, "images": 100, "set": "a" * 64}
    run = Run(tmp_path, {"lr": 0.001}, facts)
    run.add(result(0))
    content = json.loads(run.path.read_text())
    whole = dict(content)
    for name in ("images", "set"):
        del content[name]
    del content["seeds"][0]["processes"]
    run.path.write_text(json.dumps(content))
    assert Run(tmp_path, {"lr": 0.001}, facts).results[0].processes is None
    found = json.loads(run.path.read_text())
    assert (found["images"], found["set"], found["top1_mean"]) == (100, "a" * 64, whole["top1_mean"])


def test_a_file_of_the_earlier_columns_is_read_and_added_to(tmp_path):
    (tmp_path / "results.csv").write_text(f"{EARLIER}\n{EARLIER_ROW}\n")
    [row] = results.read_rows(tmp_path / "results.csv")
    assert row["seed"] == "7" and row["syn_dir"] == "runs/syn" and row["settings"] == ""
    Run(tmp_path, {}, FACTS).add(result(0))
    header, old, new = lines(tmp_path)
    assert ",".join(header) == COLUMNS
    assert old == [*EARLIER_ROW.split(","), ""] and new[6] == "0" and new[-1]


def test_results_of_other_columns_are_left_alone(tmp_path):
    for content in ("a,b\n1,2\n", "", f"{COLUMNS},more\n", COLUMNS.replace("top1", "top2") + "\n"):
        (tmp_path / "results.csv").write_text(content)
        with pytest.raises(UserError, match="results.csv"):
            Run(tmp_path, {}, FACTS).add(result(0))
        assert (tmp_path / "results.csv").read_text() == content


@pytest.mark.parametrize("harm", ["cut", "no seeds", "a word for a number"])
def test_a_damaged_result_is_one_error(tmp_path, harm):
    run = Run(tmp_path, {}, FACTS)
    run.add(result(0))
    content = json.loads(run.path.read_text())
    if harm == "no seeds":
        del content["seeds"]
    elif harm == "a word for a number":
        content["seeds"][0]["top1"] = "high"
    text = json.dumps(content)
    run.path.write_text(text[: len(text) // 2] if harm == "cut" else text)
    with pytest.raises(UserError, match=run.path.name):
        Run(tmp_path, {}, FACTS)


def test_summary_is_mean_and_sample_deviation():
    found = results.summary([result(0, 40.0), result(1, 42.0), result(2, 47.0)])
    # Deviations -3, -1, 4: (9 + 1 + 16) / 2 = 13.
    assert found == {"top1_mean": 43.0, "top1_std": pytest.approx(13**0.5, abs=1e-4), "best_top1_mean": 43.5}
    assert results.summary([result(0)])["top1_std"] == 0


def test_a_seed_has_one_row_however_its_folder_is_written(tmp_path):
    Run(tmp_path, {"lr": 0.001}, FACTS).add(result(0))
    Run(tmp_path, {"lr": 0.001}, FACTS).add(result(1, 45.0))
    again = Run(tmp_path, {"lr": 0.001}, {**FACTS, "syn_dir": "/elsewhere/syn"})
    assert sorted(again.results) == [0, 1]
    _, *rows = lines(tmp_path)
    assert [(row[6], row[12]) for row in rows] == [("0", "/elsewhere/syn"), ("1", "/elsewhere/syn")]
