"""compare.sh with the stages themselves, on a tiny data set: what the table says is what the results say."""

import csv
import json
import math
import os
import statistics
import subprocess
import sys

import pytest

from conftest import images
from script_stubs import ROOT, SCRIPTS


@pytest.mark.slow
def test_a_comparison_from_the_images_to_the_table(place):
    run = place / "run"
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHON_BIN": sys.executable,
        "OMP_NUM_THREADS": "1",
        "TRAIN_DIR": place.train,
        "VAL_DIR": place.val,
        "RUN_DIR": run,
        "DELT_ARCH": "conv3",
        "RANKER_PATH": place.teacher,
        "METHODS": "delt",
        "BASELINES": "random",
        "STARTS": "",
        "IPC": "2",
        "ITR_SHARE": "0.002",
        "VAL_EPOCHS": "2",
        "SEEDS": "2",
        "DELT_DEVICE": "cpu",
        "DELT_WORKERS": "0",
        "COMPILE": "off",
        "PRECISION": "fp32",
        "RECOVER_ARGS": "--batch-size 6 --blend 0.5",  # delt has no stages to blend in
        "VALIDATE_ARGS": "--class-weight 0.1",  # without --loss mse nothing reads it
    }
    process = subprocess.run(
        ["bash", SCRIPTS / "compare.sh"],
        cwd=ROOT,
        env={name: str(value) for name, value in variables.items()},
        text=True,
        capture_output=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    made = images(run / "sets" / "delt")
    assert len(made) == 6 and made.keys() != images(run / "starts" / "random").keys()
    with open(run / "results.csv", newline="") as file:
        stored = list(csv.DictReader(file))
    with open(run / "report" / "comparison.csv", newline="") as file:
        rows = {(row["method"], row["protocol"].split()[0]): row for row in csv.DictReader(file)}
    recovered = "delt iterations=8 round_iterations=1"  # of 4000 and 500: the share
    assert {row["protocol"] for row in stored} == {"delt epochs=2", "hard epochs=2"}
    assert rows.keys() == {(name, protocol) for name in (recovered, "random") for protocol in ("delt", "hard")}
    top1 = {key: [float(r["top1"]) for r in stored if (r["method"], r["protocol"].split()[0]) == key] for key in rows}
    for (name, protocol), row in rows.items():
        own, random = top1[name, protocol], top1["random", protocol]
        assert len(own) == 2 and float(row["top1"]) == pytest.approx(statistics.fmean(own), abs=0.01)
        if name == recovered:
            assert float(row["margin"]) == pytest.approx(statistics.fmean(own) - statistics.fmean(random), abs=0.02)
            error = math.sqrt((statistics.variance(own) + statistics.variance(random)) / 2)
            assert float(row["margin_std"]) == pytest.approx(error, abs=0.02)
        folder = run / ("sets/delt" if name == recovered else "starts/random")
        assert int(row["image_bytes"]) == sum(map(len, images(folder).values()))
        assert row["label_bytes"] == ("0" if protocol == "hard" else str(2 * 6 * 3 * 2))
        assert -1 <= float(row["similarity"]) <= 1 and float(row["seconds"]) >= 0
    assert rows[recovered, "hard"]["iterations"] == "8" and rows["random", "hard"]["iterations"] == ""
    seconds = json.loads((run / "sets" / "delt" / "manifest.json").read_text())["seconds"]
    assert float(rows[recovered, "hard"]["recover_seconds"]) == pytest.approx(seconds, abs=0.5), "whole seconds"
    page = (run / "report" / "report.html").read_text()
    assert page.index('id="comparison"') < page.index('id="results"')
    assert "over random" in page and "over random" in process.stdout
