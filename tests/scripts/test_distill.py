"""distill.sh and quickstart.sh: variables become the stages' command lines."""

import re
import subprocess
import sys

import pytest

from script_stubs import PYTHON, ROOT, SCRIPTS, Stubs, command

STAGES = {"squeeze", "ranking", "recover", "validate"}

# What clusters, shells and build systems export under the names of the scripts' own variables.
FOREIGN = {
    "ARCH": "x86_64",
    "NAME": "host",
    "SEED": "abc",
    "LR": "high",
    "DEVICE": "pts/0",
    "INIT": "/sbin/init",
    "METHOD": "POST",
    "STAGES": "x",
    "WORKERS": "many",
    "NPROC": "64",
}


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


@pytest.mark.parametrize("path", sorted([*SCRIPTS.rglob("*.sh"), ROOT / ".ci" / "run"]), ids=lambda path: path.name)
def test_bash_syntax(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert b"\r" not in path.read_bytes()


# --- what other programs export ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["distill", "quickstart", "cifar10_conv3_ipc10", "resnet18_imagenet1k_synthesis"])
def test_what_other_programs_export_changes_nothing(distill, name):
    plain, process = distill(name, RUN_DIR=None)
    assert process.returncode == 0 and plain, process.stderr
    foreign, process = distill(name, RUN_DIR=None, **FOREIGN)
    assert process.returncode == 0 and foreign == plain
    told = process.stdout.splitlines()
    assert sum("ARCH (DELT_ARCH is read)" in line for line in told) == 1


@pytest.mark.parametrize("name", ["distill", "quickstart", "cifar10_conv3_ipc10"])
def test_names_with_prefix_are_read(distill, tmp_path, name):
    given = {f"DELT_{variable}": value for variable, value in FOREIGN.items()}
    given |= {"DELT_STAGES": "recover validate", "DELT_NPROC": 2, "RANKER_PATH": tmp_path / "teacher.pth"}
    calls, process = distill(name, RUN_DIR=None, **{**FOREIGN, **given})
    assert process.returncode == 0, process.stderr
    recover, validate = dict(calls)["recover"], dict(calls)["validate"]
    assert "squeeze" not in dict(calls) and recover["before"][-2:] == ["--standalone", "-m"]
    for flag, value in {
        "teacher-arch": "x86_64",
        "seed": "abc",
        "lr": "high",
        "device": "pts/0",
        "init": "/sbin/init",
        "method": "POST",
        "workers": "many",
    }.items():
        assert recover[flag] == value
    assert validate["student-arch"] == "x86_64" and validate["method"].split()[0] == "POST"
    if name != "quickstart":
        assert recover["syn-dir"] == "runs/host/syn"


def test_prefix_of_a_variable_that_takes_none_is_named(distill):
    calls, process = distill("distill", DELT_IPC=20)
    assert process.returncode == 0 and dict(calls)["recover"]["ipc"] == "10"
    assert "DELT_IPC (IPC is read)" in process.stdout


def test_variables_of_the_comparison_are_named_and_not_taken(distill):
    """Those that compare.sh has a default for, as distill.sh and its stages have none."""
    read = {
        name: set(re.findall(r"^([A-Z_]+)=\$\{\1:?-", (SCRIPTS / f"{name}.sh").read_text(), re.M))
        for name in ("compare", "distill", "stages")
    }
    own = read["compare"] - read["distill"] - read["stages"] - {"EMBEDDED"}  # which is no variable of its user's
    plain, process = distill("distill")
    assert "not taken" not in process.stdout and len(own) == 5
    calls, process = distill("distill", **dict.fromkeys(own, "1"))
    assert process.returncode == 0 and calls == plain
    [said] = [line for line in process.stdout.splitlines() if "not taken from the environment" in line]
    assert all(f" {name}" in said for name in own)
    assert "METHODS (DELT_METHOD is read)" in said and "PROTOCOLS (PROTOCOL is read)" in said


# --- command lines ----------------------------------------------------------------------------------------------


def test_stage_command_lines(distill, tmp_path):
    """One script, in full: what each variable turns into, and that an empty one leaves the stage its default."""
    variables = dict(IPC=3, ITR=80, ROUND_ITR=20, DELT_LR=0.5, STUDENT="resnet18 conv3", PROTOCOL="delt hard")
    variables |= dict(DELT_METHOD="delt")
    calls, process = distill("cifar10_resnet18_ipc10", cwd=tmp_path, SQUEEZE_ARGS="--extra 1", DELT_SEED=4, **variables)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    machine = {"device": "auto", "precision": "auto", "compile": "auto"}
    common = {"before": ["-m"], "dataset": "cifar10", "seed": "4", **machine}
    teacher = {"teacher-arch": "resnet18", "teacher-path": f"{run}/teacher.pth"}

    def ranking(criterion, folder):
        files = {
            "train-dir": f"{tmp_path}/train",
            "ranking-file": f"{run}/ranking.csv",
            "output-dir": f"{run}/{folder}",
        }
        return "ranking", {**common, **teacher, **files, "criterion": criterion, "ipc": "3"}

    squeeze = {"train-dir": f"{tmp_path}/train", "val-dir": f"{tmp_path}/val", "arch": "resnet18", "extra": "1"}
    recover = {"method": "delt", "init-dir": f"{run}/init", "syn-dir": f"{run}/syn", "ipc": "3", "lr": "0.5"}
    recover |= {"iterations": "80", "round-iterations": "20", "contact-sheet": f"{run}/contact_sheet.png"}
    validate = {"syn-dir": f"{run}/syn {run}/random", "method": "delt random", "val-dir": f"{tmp_path}/val"}
    validate |= {"student-arch": "resnet18 conv3", "protocol": "delt hard", "output-dir": str(run), "seeds": "3"}
    diversity = {"before": ["-m"], "after": f"{run}/syn {run}/random", "method": "delt random"}
    diversity |= {"dataset": "cifar10", "output-dir": str(run), **machine}
    assert calls == [
        ("squeeze", {**common, **squeeze, "output": f"{run}/teacher.pth"}),
        ranking("medium", "init"),
        ("recover", {**common, **teacher, **recover}),
        ranking("random", "random"),
        ("validate", {**common, **teacher, **validate}),
        ("validate.report.diversity", {**diversity, **teacher}),
        ("validate.report", {"before": ["-m"], "after": str(run)}),
        ("validate.report.summary", {"before": ["-m"], "after": str(run)}),
    ]


def test_the_order_of_the_classes_arrives_where_there_is_a_teacher(distill, tmp_path):
    (tmp_path / "order.txt").touch()
    calls, process = distill("distill", CLASSES=tmp_path / "order.txt", CLASSES_BY="position")
    assert process.returncode == 0, process.stderr
    having = {stage for stage, flags in calls if flags.get("classes") == f"{tmp_path}/order.txt"}
    assert having == {stage for stage, flags in calls if "teacher-arch" in flags}
    assert having == {"ranking", "recover", "validate", "validate.report.diversity"}
    placed = {stage for stage, flags in calls if flags.get("classes-by") == "position"}
    assert placed == {"recover", "validate", "validate.report.diversity"}


@pytest.mark.parametrize("name, value", [("CLASSES", "no/such/file"), ("CLASSES_BY", "number")])
def test_a_wrong_order_of_the_classes_is_said_before_any_work(distill, name, value):
    calls, process = distill("distill", **{name: value})
    assert process.returncode == 2 and not calls and f"{name}: " in process.stderr and value in process.stderr


def test_every_setting_of_recover_arrives(distill):
    flags = {
        "iterations": "ITR",
        "round-iterations": "ROUND_ITR",
        "r-bn": "R_BN",
        "first-bn-multiplier": "FIRST_BN_MULTIPLIER",
        "jitter": "JITTER",
        "curriculum": "CURRICULUM",
        "milestone": "MILESTONE",
        "min-crop": "MIN_CROP",
        "init": "DELT_INIT",
        "batch-by": "BATCH_BY",
        "image-format": "IMAGE_FORMAT",
        "batch-size": "RECOVER_BATCH",
    }
    values = {variable: f"v{number}" for number, variable in enumerate(flags.values())}
    calls, _ = distill("distill", DELT_STAGES="squeeze recover", **values)
    recover = dict(calls)["recover"]
    assert {flag: recover[flag] for flag in flags} == {flag: values[variable] for flag, variable in flags.items()}
    assert "dataset" not in recover


@pytest.mark.parametrize("method", ["delt", "cda", "sre2l"])
def test_a_recipe_keeps_its_own_settings(distill, tmp_path, method):
    """Without a setting from outside recover gets the recipe's name and none of the recipe's settings."""
    calls, process = distill("distill", DELT_METHOD=method, IPC=1)
    assert process.returncode == 0, process.stderr
    recover = dict(calls)["recover"]
    start = "train" if method == "sre2l" else "run/init"
    assert recover["method"] == method and recover["init-dir"] == f"{tmp_path}/{start}"
    given = {"iterations", "round-iterations", "lr", "init", "batch-by", "milestone", "curriculum"}
    assert not given & set(recover)
    assert dict(calls)["validate"]["method"] == f"{method} random"
    assert "validate.report.diversity" not in dict(calls), "one image is no pair"


@pytest.mark.parametrize("line", [dict(ITR=300), dict(ITR=300, ROUND_ITR=125), dict(ROUND_ITR=300)], ids=str)
def test_rounds_that_do_not_fit_are_found_before_any_work(distill, line):
    calls, process = distill("distill", **line)
    assert process.returncode == 2 and "do not divide" in process.stderr and not calls
    assert distill("distill", ITR=300, ROUND_ITR=0)[1].returncode == 0
    assert distill("distill", ITR=300, RECOVER_ARGS="--round-iterations 100")[1].returncode == 0
    assert distill("distill", **line, DELT_METHOD="rded")[1].returncode == 0, "nothing is recovered"


def test_the_quickstart_shortens_methods_that_take_long(distill):
    own = dict(PYTHON_BIN=distill.python)
    iterations = {
        method: dict(distill("quickstart", **own, DELT_METHOD=method)[0])["recover"].get("iterations")
        for method in ("delt", "delt+", "cda", "cim", "mosaic")
    }
    assert iterations == {"delt": "200", "delt+": None, "cda": "200", "cim": None, "mosaic": None}
    calls, process = distill("quickstart", **own, ITR="", ROUND_ITR="")
    assert process.returncode == 0 and "iterations" not in dict(calls)["recover"], "left to the recipe"


def test_processes_of_one_machine_share_every_stage(distill):
    calls, _ = distill("distill", DELT_NPROC=2, MAX_RESTARTS=3)
    before = {stage: flags["before"] for stage, flags in calls}
    launch = ["-m", "utils.run.launch", "--nproc-per-node", "2", "--max-restarts", "3", "--standalone", "-m"]
    assert {stage for stage in before if before[stage] == launch} == STAGES
    assert before["validate.report"] == before["validate.report.summary"] == ["-m"]


def test_machines_meet_at_one_of_them_which_makes_the_page(distill):
    where = dict(NNODES="1:4", DELT_NPROC=8, MASTER_ADDR="node7", MASTER_PORT=1234)
    calls, _ = distill("distill", **where)
    recover = dict(calls)["recover"]["before"]
    expected = {
        "--nnodes": "1:4",
        "--rdzv-endpoint": "node7:1234",
        "--nproc-per-node": "8",
        "--rdzv-backend": "c10d",
        "--rdzv-id": "distill-recover",
    }
    assert {flag: recover[recover.index(flag) + 1] for flag in expected} == expected
    assert "--standalone" not in recover and "validate.report" in dict(calls)
    others, _ = distill("distill", SLURM_NODEID=2, **where)
    assert {stage for stage, _ in others} == STAGES
    calls, refused = distill("distill", NNODES=2)
    assert refused.returncode == 2 and "MASTER_ADDR" in refused.stderr and not calls


def test_baselines(distill, tmp_path):
    run = tmp_path / "run"
    validate = dict(distill("distill", BASELINES="random selection")[0])["validate"]
    assert validate["method"] == "delt random medium" and validate["syn-dir"] == f"{run}/syn {run}/random {run}/init"
    assert dict(distill("distill", BASELINES="")[0])["validate"]["method"] == "delt"
    calls, _ = distill("distill", BASELINES="herding k-center")
    assert [flags["criterion"] for stage, flags in calls if stage == "ranking"] == ["medium", "herding", "k-center"]
    assert dict(calls)["validate"]["syn-dir"] == f"{run}/syn {run}/herding {run}/k-center"


def test_without_baselines_further_arguments_of_ranking_may_choose_images(distill):
    calls, process = distill("distill", RANKING_ARGS="--candidates 500", BASELINES="selection", DELT_METHOD="rded")
    assert process.returncode == 0 and dict(calls)["ranking"]["candidates"].endswith("500"), process.stderr


def test_further_arguments_of_ranking_are_those_of_the_start_and_of_the_baselines(distill):
    calls, process = distill("distill", RANKING_ARGS="--batch-size 8 --device cuda:1", BASELINES="random herding")
    assert process.returncode == 0, process.stderr
    found = [flags for stage, flags in calls if stage == "ranking"]
    assert [flags["criterion"] for flags in found] == ["medium", "random", "herding"]
    assert {(flags["batch-size"], flags["device"]) for flags in found} == {("8", "cuda:1")}


def test_a_given_teacher_is_not_trained(distill, tmp_path):
    calls, process = distill("distill", RANKER_PATH=tmp_path / "teacher.pth")
    assert "squeeze is skipped" in process.stdout and "squeeze" not in dict(calls)
    assert {flags["teacher-path"] for _, flags in calls if "teacher-arch" in flags} == {f"{tmp_path}/teacher.pth"}
    calls, process = distill("distill", RANKER_PATH="torchvision")
    assert "squeeze is skipped" in process.stdout and not any("teacher-path" in flags for _, flags in calls)


def test_failing_stage_ends_the_script(distill):
    calls, process = distill("distill", FAILING="ranking")
    assert process.returncode == 7 and [stage for stage, _ in calls] == ["squeeze", "ranking"]


# --- what is wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, variables, told",
    [
        ("distill", dict(TRAIN_DIR=None), "TRAIN_DIR is empty"),
        ("cifar10_resnet18_ipc10", dict(VAL_DIR="nowhere"), "prepare_data.sh cifar10"),
        ("distill", dict(BASELINES="", DELT_STAGES="squeeze recovery"), "'recovery' is none of"),
        ("distill", dict(BASELINES="selection unknown"), "BASELINES: 'ranking.criteria' knows no 'unknown'"),
        ("distill", dict(CRITERION="unknown"), "CRITERION: 'ranking.criteria' knows no 'unknown'; known: this, that"),
        ("distill", dict(PROTOCOL="delt unknown"), "PROTOCOL: 'validate.protocols' knows no 'unknown'"),
        ("distill", dict(DELT_METHOD="unknown"), "METHOD: 'recover.methods' knows no 'unknown'"),
        (
            "distill",
            dict(RANKING_ARGS="--workers 2 --criterion top"),
            "--criterion would also change the images of the",
        ),
        ("quickstart", dict(RANKING_ARGS="--crops=5 --tiles=2"), "RANKING_ARGS: --crops would"),
        ("distill", dict(RANKING_ARGS="--candidates 2x"), "baselines: set CRITERION, IPC or METHOD, or INIT_PATH"),
        ("distill", dict(RANKING_ARGS="--tiles 2"), "--tiles"),
        ("distill", dict(RANKING_ARGS="--ipc 2"), "--ipc"),
        ("distill", dict(RECOVER_ARGS="--iterations 2 --method=cda"), "RECOVER_ARGS: --method would make another"),
        ("distill", dict(RECOVER_ARGS="--syn-dir elsewhere"), "no other stage looks for it: set SYN_PATH"),
        ("distill", dict(DELT_STAGES="recover"), "set RANKER_PATH"),
        ("distill", dict(RANKER_PATH="nowhere.pth"), "no file nowhere.pth"),
        ("distill", dict(PYTHON_BIN="false"), "setup.sh"),
        ("quickstart", dict(VAL_DIR=None), "VAL_DIR is not"),
        ("quickstart", dict(TRAIN_DIR=None), "TRAIN_DIR is not"),
    ],
)
def test_what_is_wrong_is_said_before_any_stage(distill, name, variables, told):
    calls, process = distill(name, **variables)
    assert process.returncode == 2 and not calls
    assert told in process.stderr and len(process.stderr.splitlines()) == 1


@pytest.fixture
def asking(distill, tmp_path):
    """A Python that only notes what stages are asked, but is this project's own registries."""
    stub = distill.python.read_text().replace("    exit 0;;\n", f'    cd {ROOT}; exec {sys.executable} "$@";;\n')
    return command(tmp_path / "asking", stub.replace('*" unknown "*', "none"))


def test_the_registries_know_the_scripts_words(distill, asking):
    _, process = distill("distill", PYTHON_BIN=asking)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "variable, known",
    [("PROTOCOL", "rded"), ("CRITERION", "herding"), ("BASELINES", "herding"), ("DELT_METHOD", "cda")],
)
def test_the_line_about_an_unknown_word_lists_known_ones(distill, asking, variable, known):
    calls, process = distill("distill", PYTHON_BIN=asking, **{variable: "soft"})
    assert process.returncode == 2 and not calls and len(process.stderr.splitlines()) == 1
    assert "'soft'" in process.stderr and known in process.stderr


@pytest.mark.parametrize("name", ["distill", "quickstart", "setup", "test", "prepare_data", "cifar10_resnet18_ipc10"])
def test_other_systems_get_one_line(distill, tmp_path, name):
    uname = command(tmp_path / "bin" / "uname", "#!/bin/sh\necho MINGW64_NT-10.0\n")
    calls, process = distill(name, PATH=f"{uname.parent}:/usr/bin:/bin")
    assert process.returncode == 2 and not calls and not process.stdout
    assert len(process.stderr.splitlines()) == 1
    for word in "Linux", "macOS", "WSL", "MINGW64_NT-10.0":
        assert word in process.stderr


def test_quickstart(distill, tmp_path):
    own = dict(TRAIN_DIR=None, VAL_DIR=None, RUN_DIR=tmp_path)
    calls, process = distill("quickstart", **own)  # the images are to come into data/, and do not
    assert calls == [
        ("utils.data.prepare", {"before": ["-m"], "after": "fashion_mnist_cut", "output": f"{tmp_path}/data"})
    ]
    assert process.returncode == 2
    (tmp_path / "data").mkdir()
    for name in "train", "val":
        (tmp_path / name).rename(tmp_path / "data" / name)
    calls, process = distill("quickstart", **own)
    assert process.returncode == 0, process.stderr
    stages = dict(calls)
    assert stages["squeeze"]["train-dir"] == f"{tmp_path}/data/train" and stages["squeeze"]["arch"] == "conv3"
    assert all(stages[name]["dataset"] == "fashion_mnist_cut" for name in ("squeeze", "recover", "validate"))
    assert (stages["validate"]["method"], stages["validate"]["protocol"]) == ("delt+ random", "delt hard")
    first = dict(reversed(calls))  # of ranking's calls the one before those of baselines
    assert (first["ranking"]["criterion"], first["recover"]["method"]) == ("easy-herding", "delt+")
    assert not {"lr", "iterations", "round-iterations"} & first["recover"].keys(), "the recipe's own"
    first = dict(reversed(distill("quickstart", **own, DELT_METHOD="cda")[0]))
    assert first["ranking"]["criterion"] == "medium" and "lr" not in first["recover"], "another recipe's own"
    given = dict(TRAIN_DIR=tmp_path / "data" / "val", VAL_DIR=tmp_path / "data" / "val")
    calls, process = distill("quickstart", **given)
    assert process.returncode == 0 and calls[0][0] == "squeeze"
    assert dict(calls)["ranking"]["train-dir"] == f"{tmp_path}/data/val"
    assert "dataset" not in dict(calls)["ranking"]
    calls, process = distill("quickstart", **own, DATASET="cifar10")
    assert process.returncode == 2 and not calls and "DATASET" in process.stderr and "TRAIN_DIR" in process.stderr


def test_what_is_to_be_expected_is_printed_before_the_stages(tmp_path):
    stubs = Stubs(tmp_path)
    first = '[ "$2" = benchmarks.estimate ] && { echo "asked: $*"; exit "${BROKEN:-0}"; }\n'
    command(stubs.python, PYTHON.replace("#!/bin/sh\n", f"#!/bin/sh\n{first}"))
    line = dict(ITR=100, ROUND_ITR=0, IPC=7, DELT_ARCH="conv3", BASELINES="random selection", TFLOPS="0.4")
    stages, process = stubs("distill", **line)
    assert process.returncode == 0 and stages[0][0] == "squeeze"
    asked, started = process.stdout.index("asked: "), process.stdout.index("$ ")
    assert asked < started
    words = process.stdout[asked:].splitlines()[0]
    for part in (
        "--ipc 7 --seeds 3",
        "--method delt",
        "--teacher-arch conv3 --student conv3",
        "--sets 3",
        "--tflops 0.4",
    ):
        assert part in words
    assert f"--train-dir {tmp_path}/train --val-dir {tmp_path}/val" in words and "--iterations 100" in words
    assert stubs("distill", **line, BROKEN=1)[1].returncode == 0, "it is no reason to stop"
