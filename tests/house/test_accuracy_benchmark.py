"""benchmarks.accuracy: what is added up until an accuracy is reached; and a small run of it."""

import subprocess
import sys

import pandas as pd
import pytest

from benchmarks.accuracy import Work, main, mean_curve, seconds_to, verdict
from conftest import ROOT
from result_files import write_result
from validate.report import collect

ROW = dict(squeeze=100.0, ranking=5.0, recover=20.0, validate=60.0, epochs=30, iterations=400)


def test_seconds_of_a_student_count_until_the_mean_is_there():
    row = {**ROW, "curve": {10: 40.0, 20: 43.0, 30: 42.0}}
    assert seconds_to(row, 43) == dict(squeeze=100, ranking=5, recover=20, validate=40)
    assert seconds_to(row, 40) == dict(squeeze=100, ranking=5, recover=20, validate=20)
    assert seconds_to(row, 43.5) is None


def test_the_mean_is_over_the_seeds_where_it_was_measured(tmp_path):
    write_result(tmp_path, seeds=((0, 40.0), (1, 44.0)))
    [found] = collect.read([tmp_path])
    assert mean_curve(found) == {3: 42.0}


def test_the_share_that_is_there_soonest_is_named():
    long = {**ROW, "recover": 200.0, "iterations": 4000, "curve": {10: 45.0}}
    late = {**ROW, "curve": {30: 43.0}}
    said = verdict("delt", pd.DataFrame([long, late]), 43)
    assert said == "delt: 43 % after 185 s (squeeze 100, ranking 5, recover 20, validate 60), 400 iterations"
    assert verdict("delt", pd.DataFrame([late]), 50) == "delt: never at 50 %"


@pytest.mark.slow
def test_a_small_run(place):
    out = place / "accuracy"
    words = ["--train-dir", place.train, "--val-dir", place.val, "--teacher", place.teacher, "--output-dir", out]
    words += ["--ipc", "2", "--seeds", "1", "--shares", "0.002", "--target", "0", "--evaluations", "1"]
    line = [sys.executable, "-m", "benchmarks.accuracy", *words, "--validate", "--epochs 2 --device cpu"]
    done = subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 8 rounds of a single iteration, of delt's 8 of 500.
    [row] = pd.read_csv(out / "accuracy.csv").to_dict("records")
    assert (row["method"], row["iterations"]) == ("delt", 8) and 0 <= row["top1"] <= 100
    assert (out / "accuracy.png").stat().st_size > 0 and "delt: 0.0 % after " in done.stdout


def test_a_method_that_it_cannot_measure_is_said_before_any_work(tmp_path, capsys, monkeypatch):
    line = f"x --train-dir a --val-dir b --dataset cifar10 --output-dir {tmp_path / 'out'} --methods delt gvbsm"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "error: --methods: gvbsm reads statistics" in capsys.readouterr().err and not list(tmp_path.glob("out/*"))


def test_students_of_other_settings_have_a_folder_of_their_own(tmp_path):
    def folder(*more):
        given = dict(train_dir="a", val_dir="b", output=tmp_path, dataset="cifar10", arch="conv3", shares=(1.0,))
        given |= dict(teacher=tmp_path, teacher_given=True, methods=("delt",), ipc=10, protocol=None, seeds=1)
        return Work(**given, evaluations=1, more=more).results_of("delt", 1.0)

    assert len({folder(), folder("--epochs", "2"), folder("--epochs", "3")}) == 3
    assert folder().name == "delt-1-students-delt"


def test_a_teacher_that_is_not_there_is_said_before_any_work(tmp_path, capsys, monkeypatch):
    line = f"x --train-dir a --val-dir b --output-dir {tmp_path / 'out'} --teacher {tmp_path / 'con3.pth'}"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "con3.pth: no such file" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())
