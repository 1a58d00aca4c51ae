"""python -m validate.report.summary: the small table at the end of a script."""

import subprocess
import sys

import pytest
import torch

from conftest import ROOT, Place
from result_files import write_manifest, write_rows, write_run

LINE = [sys.executable, "-m", "validate.report.summary"]


def summary(run):
    return Place(run).start("validate.report.summary", run)


def test_what_a_run_measured(tmp_path):
    write_run(tmp_path)
    write_rows(tmp_path, {"top1": 40.0}, {"seed": 1, "top1": 44.0}, {"method": "random", "top1": 9.5, "settings": "b"})
    torch.save(
        {"model": {"w": torch.zeros(1)}, "seconds": 12.0, "top1": 89.3, "arch": "conv3"}, tmp_path / "teacher.pth"
    )
    outcome = summary(tmp_path)
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    for words in (
        "squeeze 12.0 s teacher conv3: top-1 89.30 %",
        "recover 60.0 s 24 images",
        "validate 7.5 s 3 students",
        "student method ipc delt",
        "conv3 delt 10 42.00 ± 2.83",
        "conv3 random 10 9.50",
    ):
        assert words.split() in lines, outcome.out
    assert f"{tmp_path / 'syn'} " in outcome.out and "contact_sheet.png" not in outcome.out, "only what is there"


def test_images_of_a_selection_are_counted(tmp_path):
    write_rows(tmp_path, {})
    chosen = {"ant": ["ant/3.png", "ant/1.png"], "moth": ["moth/2.png", "moth/5.png"]}
    write_manifest(tmp_path / "init", settings={"criterion": "medium", "ipc": 2, "images": chosen}, seconds=3.25)
    lines = [line.split() for line in summary(tmp_path).out.splitlines()]
    assert "ranking 3.2 s 4 images".split() in lines


def test_rows_of_other_settings_stand_apart(tmp_path):
    write_rows(tmp_path, {"top1": 40.0, "settings": "a" * 64}, {"top1": 60.0, "settings": "b" * 64})
    out = summary(tmp_path).out
    assert "50.00" not in out and all(word in out for word in ("40.00", "60.00", "a" * 8, "b" * 8))


@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "no table", "\x00\x01"])
def test_a_folder_without_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    outcome = summary(tmp_path)
    assert outcome.code == 2 and "results.csv" in outcome.err and len(outcome.err.splitlines()) == 1


@pytest.mark.parametrize("row", [[], [{"top1": "high"}], [{"seconds": ""}]])
def test_rows_that_are_no_results(tmp_path, row):
    write_rows(tmp_path, *row)
    outcome = summary(tmp_path)
    assert outcome.code == 2 and "results.csv" in outcome.err and len(outcome.err.splitlines()) == 1


def test_usage(tmp_path):
    for words in ([], ["--help"], [tmp_path, tmp_path]):
        outcome = Place(tmp_path).start("validate.report.summary", *words)
        assert outcome.code == 2 and "RUN_DIR" in outcome.err


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    write_rows(tmp_path, {"top1": 50.0})
    whole = subprocess.run([*LINE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0 and "50.00" in whole.stdout
    process = subprocess.Popen([*LINE, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head does when it has its lines
    assert process.stderr.read() == b"" and process.wait() == 141
