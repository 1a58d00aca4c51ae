"""compare.sh: what is made once and shared, what is measured, and what happens when it stops or something fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from command_lines import refusal
from recover.needs import NEEDS, Needs, names
from script_stubs import ROOT, SCRIPTS, command, parse

STUB = ROOT / "tests" / "scripts" / "compare_stub.py"
COLLECTED = ("squeeze.statistics", "squeeze.barycenters")
FEW = dict(METHODS="delt cda", BASELINES="random")


class Compare:
    """Runs compare.sh with a Python that only leaves files, on folders that hold nothing."""

    def __init__(self, folder):
        self.folder, self.run, self.record = folder, folder / "run", folder / "record"
        self.python = command(folder / "python", f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
        for name in "train", "val":
            (folder / name).mkdir()

    def start(self, **variables):
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHON_BIN": self.python,
            "RECORD": self.record,
            "TRAIN_DIR": self.folder / "train",
            "VAL_DIR": self.folder / "val",
            "RUN_DIR": self.run,
            "GO": self.folder / "go",
            **variables,
        }
        return subprocess.Popen(
            ["bash", SCRIPTS / "compare.sh"],
            cwd=ROOT,
            env={name: str(value) for name, value in environment.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, **variables):
        """[(stage, {flag: value})] of this start, and the process, which has ended."""
        self.record.write_text("")
        process = self.start(**variables)
        process.out, process.err = process.communicate(timeout=300)
        return self.calls, process

    @property
    def calls(self):
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [parse("\t".join(["python", "-m", *json.loads(line), ""])) for line in lines]

    def waits_for(self, word):
        until = time.monotonic() + 60
        while time.monotonic() < until and not (self.record.exists() and f'"{word}"' in self.record.read_text()):
            time.sleep(0.05)
        assert f'"{word}"' in self.record.read_text()


@pytest.fixture
def compare(tmp_path):
    return Compare(tmp_path)


def of(calls, stage):
    return [flags for name, flags in calls if name == stage]


def test_each_set_is_made_once_and_measured_under_each_protocol(compare):
    calls, process = compare(METHODS="delt cda rded", BASELINES="random herding k-center", IPC=3, SEEDS=2, VAL_EPOCHS=5)
    assert process.returncode == 0, process.err
    run = compare.run
    starts = {flags["criterion"]: flags["output-dir"] for flags in of(calls, "ranking")}
    assert list(starts) == ["medium", "top", "random", "herding", "k-center"] and len(of(calls, "ranking")) == 5
    [collages] = [flags for flags in of(calls, "ranking") if flags["criterion"] == "top"]
    assert (collages["candidates"], collages["crops"], collages["tiles"]) == ("300", "5", "1")
    assert all("ranking-file" not in flags for flags in of(calls, "ranking")), "each scores for itself"
    assert [(flags["method"], flags["init-dir"], flags["syn-dir"]) for flags in of(calls, "recover")] == [
        (name, starts["medium"], f"{run}/sets/{name}") for name in ("delt", "cda")
    ]
    sets = {"delt": f"{run}/sets/delt", "cda": f"{run}/sets/cda", "rded": starts["top"]}
    sets |= {name: starts[name] for name in ("random", "herding", "k-center", "medium")}
    students = of(calls, "validate")
    assert {(flags["method"], flags["syn-dir"], flags["protocol"]) for flags in students} == {
        (name, folder, protocol) for name, folder in sets.items() for protocol in ("delt", "hard")
    }
    assert len(students) == 14 and not any("iterations-share" in flags for flags in of(calls, "recover"))
    for flags in students:
        assert (flags["output-dir"], flags["seeds"], flags["epochs"]) == (str(run), "2", "5")
        assert (flags["teacher-path"], flags["student-arch"]) == (f"{run}/teacher.pth", "resnet18")
    assert {flags["method"] for flags in of(calls, "validate.report.diversity")} == set(sets)
    stages = [stage for stage, _ in calls]
    assert stages[0] == "squeeze" and stages[-2:] == ["validate.report", "validate.report.comparison"]
    assert Counter(stages)["squeeze"] == 1


def test_all_that_computes_has_the_machine_s_options(compare):
    given = dict(DELT_DEVICE="cuda:1", PRECISION="fp16", COMPILE="off", DETERMINISTIC="off", DELT_WORKERS=3)
    calls, process = compare(METHODS="gvbsm", BASELINES="random", **given)
    assert process.returncode == 0, process.err
    flags = dict(device="cuda:1", precision="fp16", compile="off", deterministic="off", workers="3")
    computing = {"squeeze", "squeeze.statistics", "ranking", "recover", "validate", "validate.report.diversity"}
    assert {stage for stage, found in calls if flags.items() <= found.items()} == computing
    assert not [stage for stage, found in calls if stage in computing and not flags.items() <= found.items()]


def test_the_same_command_skips_what_is_finished(compare):
    assert compare(**FEW)[1].returncode == 0
    calls, process = compare(**FEW)
    assert process.returncode == 0 and [stage for stage, _ in calls] == ["validate.report.comparison"]
    calls, _ = compare(**{**FEW, "METHODS": "delt cda sre2l"})
    assert [flags["method"] for flags in of(calls, "recover")] == ["sre2l"]
    assert {flags["method"] for flags in of(calls, "validate")} == {"sre2l"} and of(calls, "validate.report")


def test_a_result_that_was_removed_is_measured_again(compare):
    """The names of results are validate's own here, with settings that were changed, and cut as they are long."""
    line = dict(METHODS="rded", BASELINES="", STARTS="", PROTOCOLS="mosaic mosaic-hard")
    line |= {"EXACT": " epochs=60" * 20, "STUDENT": "timm/vit_tiny"}
    assert compare(**line)[1].returncode == 0
    [result] = (compare.run / "results").glob("rded*_mosaic_*.json")
    result.unlink()
    calls, process = compare(**line)
    assert process.returncode == 0, process.err
    assert [flags["protocol"] for flags in of(calls, "validate")] == ["mosaic"] and of(calls, "validate.report")


def test_what_was_made_of_files_that_changed_is_made_again(compare):
    inputs = [compare.folder / name for name in ("teacher.pth", "classes.txt", "train/ant/0.png")]
    inputs[2].parent.mkdir()
    for path in inputs:
        path.write_text("one")
    line = dict(METHODS="rded", BASELINES="", PROTOCOLS="hard", RANKER_PATH=inputs[0], CLASSES=inputs[1])
    every = [name for name, _ in compare(**line)[0]]
    assert Counter(every)["validate"] == 1 and "ranking" in every
    for path in inputs:
        path.write_text("another")
        assert [name for name, _ in compare(**line)[0]] == every, "each stage looks for itself"
    assert "validate" not in [name for name, _ in compare(**line)[0]]


@pytest.mark.slow
def test_without_a_list_all_methods_are_compared(compare):
    """Each registered method's command line is built from what it needs, and from nothing else."""
    calls, process = compare(TEACHERS="resnet18 conv3")
    assert process.returncode == 0, process.err
    measured = {flags["method"]: flags for flags in of(calls, "validate")}
    made = {flags["method"]: flags for flags in of(calls, "recover")}
    for name in names():
        assert name in measured
        assert (name in made) == (name not in NEEDS or NEEDS[name].recovers)
    for name, flags in made.items():
        needs = NEEDS.get(name, Needs())
        count = len(flags["teacher-path"].split())
        assert count == (2 if needs.teachers == "several" else 1) and flags["teacher-arch"].split()[0] == "resnet18"
        assert len(flags.get("statistics", "").split()) == count * (bool(needs.statistics) + needs.barycenters)
    read = {path for flags in made.values() for path in flags.get("statistics", "").split()}
    collected = [flags["output"] for stage in COLLECTED for flags in of(calls, stage)]
    assert sorted(collected) == sorted(read), "each file is collected once"
    assert len(calls) > 50 and not refused(compare)


def refused(compare):
    """Command lines that were noted -> what the project's own parsers say against them."""
    lines = [json.loads(line) for line in compare.record.read_text().splitlines()]
    return {" ".join(line): said for line in lines if (said := refusal(line))}


@pytest.mark.parametrize("method", names())
def test_one_script_and_a_variable_are_a_row_s_command(compare, method, tmp_path):
    """DELT_METHOD=NAME bash scripts/distill.sh makes what the method needs, and recovers unless it does not."""
    compare.record.write_text("")
    process = subprocess.run(
        ["bash", SCRIPTS / "distill.sh"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON_BIN": str(compare.python),
            "RECORD": str(compare.record),
            "TRAIN_DIR": str(tmp_path / "train"),
            "VAL_DIR": str(tmp_path / "val"),
            "RUN_DIR": str(compare.run),
            "DELT_METHOD": method,
            "PROTOCOL": "own",
            "BASELINES": "random selection",
        },
    )
    assert process.returncode == 0, process.stderr
    calls, needs = compare.calls, NEEDS.get(method, Needs())
    assert [flags["method"] for flags in of(calls, "recover")] == [method] * needs.recovers
    made = f"{compare.run}/syn" if needs.recovers else f"{compare.run}/init"
    validate = of(calls, "validate")[0]
    assert validate["syn-dir"].split()[0] == made and validate["method"].split()[0] == method
    assert validate["protocol"] == needs.protocol
    collected = [flags["output"] for stage in COLLECTED for flags in of(calls, stage)]
    assert len(collected) == bool(needs.statistics) + needs.barycenters
    if collected:
        assert of(calls, "recover")[0]["statistics"].split() == collected
    assert not refused(compare)


def test_own_protocols_are_those_of_each_method_and_all_of_them_the_baselines(compare):
    calls, _ = compare(METHODS="delt sre2l rded", BASELINES="random", PROTOCOLS="hard own", STARTS="")
    found = {}
    for flags in of(calls, "validate"):
        found.setdefault(flags["method"], []).append(flags["protocol"])
    assert found == {
        "delt": ["hard", "delt"],
        "sre2l": ["hard", "sre2l"],
        "rded": ["hard", "rded"],
        "random": ["hard", "delt", "sre2l", "rded"],
    }


def test_several_teachers_are_trained_once_and_the_first_ones_label(compare):
    calls, process = compare(**FEW, TEACHERS="resnet18 conv3 mobilenet_v2", LABELLERS=2)
    assert process.returncode == 0, process.err
    assert [flags["arch"] for flags in of(calls, "squeeze")] == ["resnet18", "conv3", "mobilenet_v2"]
    assert {flags["teacher-arch"] for flags in of(calls, "recover")} == {"resnet18"}
    assert {flags["teacher-arch"] for flags in of(calls, "validate")} == {"resnet18 conv3"}


def test_a_package_that_is_missing_is_said_before_any_cell(compare):
    calls, process = compare(METHODS="delt wmdd", MISSING="POT")
    assert process.returncode == 2 and not calls and not compare.run.exists()
    assert process.err.splitlines()[-1].endswith("METHODS: wmdd needs the package POT")
    calls, process = compare(MISSING="POT", BASELINES="", STARTS="", PROTOCOLS="hard")
    assert process.returncode == 1, "not all of them are compared"
    assert {flags["method"] for flags in of(calls, "validate")} == set(names()) - {"wmdd"}
    said = "wmdd is left out: it needs the package POT"
    assert process.out.startswith(f"{said}\n") and process.out.endswith(f"{said}\n"), "and what was done lies between"


def test_what_is_to_be_expected_is_printed_before_the_cells(compare):
    given = dict(METHODS="delt sre2l", BASELINES="random", PROTOCOLS="hard own", STARTS="", TFLOPS="0.4")
    calls, process = compare(**given, TEACHERS="resnet18 conv3", ITR_SHARE="0.25", IPC=7, SEEDS=2)
    [asked] = [line for line in process.out.splitlines() if line.startswith("asked: ")]
    assert process.out.index(asked) < process.out.index("squeeze")
    assert parse("\t".join(["-m", "estimate", *asked.split()[1:], ""]))[1] == {
        "before": ["-m"],
        **{"train-dir": f"{compare.folder}/train", "val-dir": f"{compare.folder}/val", "ipc": "7", "seeds": "2"},
        **{"teacher-arch": "resnet18 conv3", "student": "resnet18", "labellers": "1", "tflops": "0.4"},
        **{
            "method": "delt sre2l",
            "baselines": "random",
            "iterations-share": "0.25",
            "stages": "squeeze ranking statistics recover validate",
        },
        # Of each set of students, of delt, sre2l and random images.
        **{"protocol": "hard delt hard sre2l hard delt sre2l", "sets": "1"},
    }


def test_variables_of_the_other_script_are_named_and_not_taken(compare):
    _, plain = compare(**FEW)
    assert "not taken" not in plain.out
    calls, process = compare(**FEW, DELT_METHOD="cda", DELT_LR=0.1, ITR=7, PROTOCOL="noaug", RUN_DIR=compare.folder)
    assert process.returncode == 0
    said = "not taken from the environment: DELT_METHOD DELT_LR ITR PROTOCOL (PROTOCOLS is read)"
    assert process.out.splitlines()[0] == said
    assert all("lr" not in flags and "iterations" not in flags for flags in of(calls, "recover"))


def test_all_that_the_other_script_reads_alone_is_named(compare):
    """Not what a cluster sets for every job: where its machines meet, and which one this is."""
    read = {
        name: set(re.findall(r"^([A-Z_]+)=\$\{\1:?-", (SCRIPTS / f"{name}.sh").read_text(), re.M))
        for name in ("compare", "distill", "stages")
    }
    own = read["distill"] - read["compare"] - read["stages"] - {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
    prefixed = {"METHOD", "LR", "INIT", "STAGES"}
    given = {f"DELT_{name}" if name in prefixed else name: "position" for name in own}
    _, process = compare(**given, METHODS="unknown")  # so that it ends there
    assert "CLASSES_BY" in own and prefixed <= own and process.returncode == 2
    said = process.out.splitlines()[0].split()
    assert said[:4] == ["not", "taken", "from", "the"] and set(given) <= set(said)


def test_a_share_of_the_iterations(compare):
    calls, _ = compare(**FEW, ITR_SHARE="0.25", RECOVER_ARGS="--lr 0.1")
    assert [(flags["iterations-share"], flags["lr"]) for flags in of(calls, "recover")] == [("0.25", "0.1")] * 2


def test_further_arguments_are_shared_by_all_methods_and_protocols(compare):
    """Each command reads what concerns it; commands without such arguments are as strict as elsewhere."""
    calls, _ = compare(**FEW, RECOVER_ARGS="--r-bn 0.1", VALIDATE_ARGS="--class-weight 0.1 --lr 0.1")
    made, measured = of(calls, "recover"), of(calls, "validate")
    assert [(flags["r-bn"], "shared" in flags) for flags in made] == [("0.1", True)] * 2
    assert {(flags["class-weight"], flags["lr"], "shared" in flags) for flags in measured} == {("0.1", "0.1", True)}
    assert not refused(compare)
    calls, _ = compare(**FEW, RUN_DIR=compare.folder / "plain")
    assert of(calls, "recover") and not any("shared" in flags for _, flags in calls)


def test_the_quickstarts_images_where_none_are_given(compare):
    calls, process = compare(**FEW, TRAIN_DIR=None, VAL_DIR=None)
    assert process.returncode == 0, process.err
    assert calls[0][0] == "utils.data.prepare" and calls[0][1]["output"] == f"{compare.run}/data"
    assert of(calls, "squeeze")[0]["train-dir"] == f"{compare.run}/data/train"
    assert {flags["teacher-arch"] for flags in of(calls, "recover")} == {"conv3"}


def test_a_method_that_cannot_run_is_named_and_the_rest_goes_on(compare):
    calls, process = compare(**FEW, FAILING=f"{compare.run}/sets/cda")
    assert process.returncode == 1
    [line] = [line for line in process.err.splitlines() if "that need it are left out" in line]
    assert line.startswith(f"cells: sets/cda failed: {compare.run}/sets/cda cannot run here")
    assert {flags["method"] for flags in of(calls, "validate")} == {"delt", "random", "medium"}
    assert [stage for stage, _ in calls][-2:] == ["validate.report", "validate.report.comparison"]
    calls, process = compare(**FEW)
    assert process.returncode == 0 and [flags["method"] for flags in of(calls, "recover")] == ["cda"]


def test_killed_in_the_middle_it_goes_on(compare):
    slow = compare.run / "sets" / "cda"
    process = compare.start(**FEW, SLOW=slow)
    compare.waits_for(slow)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    calls, process = compare(**FEW)
    assert process.returncode == 0, process.err
    assert [flags["method"] for flags in of(calls, "recover")] == ["cda"], "the others are finished"


def test_a_signal_to_the_script_alone_ends_what_it_started(compare):
    slow = compare.run / "sets" / "cda"
    process = compare.start(**FEW, SLOW=slow)
    compare.waits_for(slow)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)  # until nobody writes there any more
    assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in err
    calls, process = compare(**FEW)
    assert process.returncode == 0 and [flags["method"] for flags in of(calls, "recover")] == ["cda"]


def test_two_processes_share_the_cells(compare):
    processes = [compare.start(**FEW, DELT_NPROC=count) for count in (1, 2)]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    lines = Counter(compare.record.read_text().splitlines())
    table = [line for line in lines if "validate.report.comparison" in line]
    assert lines.pop(table[0]) == 2, "each shows it"
    assert set(lines.values()) == {1} and len(lines) == 1 + 2 + 2 + 4 * 2 + 4 + 1


@pytest.mark.parametrize(
    "variables, told",
    [
        (dict(METHODS="delt unknown"), "METHODS: method 'unknown' is not known; known: delt"),
        (dict(PROTOCOLS="own unknown"), "PROTOCOLS: protocol 'unknown' is not known"),
        (dict(BASELINES="random selection"), "BASELINES: criterion 'selection' is not known"),
        (dict(DATASET="unknown"), "DATASET"),
        (dict(TRAIN_DIR="nowhere"), "TRAIN_DIR: no folder nowhere"),
        (dict(DATASET="cifar10", VAL_DIR="nowhere"), "prepare_data.sh cifar10"),
        (dict(VAL_DIR=None), "VAL_DIR is empty"),
        (dict(STARTS="no"), "STARTS: 'no' is neither"),
        (dict(LABELLERS=2), "LABELLERS: 1 to 1, the number of TEACHERS, and not 2"),
        (dict(LABELLERS=0), "LABELLERS: 1 to 1"),
        (
            dict(RANKING_ARGS="--tiles 2"),
            "--tiles would also change the images of the baselines: set METHODS, BASELINES",
        ),
        (
            dict(RANKING_ARGS="--criterion top", BASELINES="", METHODS="delt"),
            "RANKING_ARGS: --criterion would also change",
        ),
        (dict(RECOVER_ARGS="--method cda"), "RECOVER_ARGS: --method would make one set for all METHODS"),
        (dict(RECOVER_ARGS="--lr 1 --syn-dir=x"), "RECOVER_ARGS: --syn-dir would put the sets of all METHODS into one"),
        (dict(RANKER_PATH="nowhere.pth"), "no file nowhere.pth"),
    ],
)
def test_what_is_wrong_is_said_before_any_cell(compare, variables, told):
    calls, process = compare(**variables)
    assert process.returncode == 2 and not calls and not compare.run.exists()
    assert told in process.err and len(process.err.splitlines()) == 1
