"""The scripts named for a data set, a teacher and an IPC: they only set variables for distill.sh."""

import re

import pytest

from script_stubs import SCRIPTS, Stubs

COMMON, DISTILL = (f'source "$(dirname "${{BASH_SOURCE[0]}}")/{name}.sh"' for name in ("common", "distill"))
THIN = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.read_text().rstrip().endswith(DISTILL))
EXPERIMENT = re.compile(r"([a-z0-9]+)_([a-z]+\d+)_ipc(\d+)")
EXPERIMENTS = [name for name in THIN if EXPERIMENT.fullmatch(name)]
PAGES = ["validate.report.diversity", "validate.report", "validate.report.summary"]


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


@pytest.mark.parametrize("name", THIN)
def test_thin_scripts_only_set_variables(name):
    lines = [line for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if not line.startswith("#")]
    assert lines.pop(0) == COMMON and lines.pop() == DISTILL
    known = (SCRIPTS / "distill.sh").read_text()
    for line in lines:
        variable = re.fullmatch(r"([A-Z_]+)=\$\{\1:?-[^{}]*\}", re.sub(r"\$\(for_method \S+", "(", line))
        assert variable, line
        assert re.search(rf"^{variable[1]}=", known, re.M), f"distill.sh knows no {variable[1]}"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_thin_scripts_run_what_their_names_say(distill, name):
    calls, process = distill(name, DELT_METHOD="delt")
    assert process.returncode == 0, process.stderr
    dataset, arch, ipc = EXPERIMENT.fullmatch(name).groups()
    stages = dict(reversed(calls))  # the first call of each
    training = [] if dataset == "imagenet1k" else ["squeeze"]
    pages = PAGES[1:] if ipc == "1" else PAGES
    assert list(dict(calls)) == [*training, "ranking", "recover", "validate", *pages]
    for stage in "ranking", "recover", "validate":
        assert stages[stage]["dataset"] == dataset and stages[stage]["teacher-arch"] == arch
    assert stages["recover"]["ipc"] == stages["ranking"]["ipc"] == ipc
    rounds = int(stages["recover"]["iterations"]) / int(stages["recover"]["round-iterations"])
    assert rounds == (1 if ipc == "1" else 8)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_says_what_is_published_and_what_is_run(distill, name):
    header = [line for line in (SCRIPTS / f"{name}.sh").read_text().splitlines() if line.startswith("#")]
    recover = dict(distill(name, DELT_METHOD="delt")[0])["recover"]
    assert re.search(r"\bITR (\d+)", "\n".join(header))[1] == recover["iterations"]
    rounds = re.search(r"\bROUND_ITR (\d+)", "\n".join(header))
    assert (rounds[1] if rounds else recover["iterations"]) == recover["round-iterations"]
    assert any("published" in line.lower() for line in header) and any("DELT_ARCH" in line for line in header)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_method_is_the_one_that_was_best_where_it_was_measured(distill, name):
    """On CIFAR-10 (docs/recipes.md), with its own start and iterations; elsewhere delt, as published."""
    stages = dict(reversed(distill(name)[0]))  # the first call of each
    if EXPERIMENT.fullmatch(name)[1] == "cifar10":
        start = "herding" if name.endswith("ipc1") else "easy-herding"
        assert (stages["ranking"]["criterion"], stages["recover"]["method"]) == (start, "delt+")
        assert dict(reversed(distill(name, DELT_METHOD="cda")[0]))["ranking"]["criterion"] == "medium"
        assert not {"iterations", "round-iterations", "lr"} & stages["recover"].keys()
    else:
        assert (stages["ranking"]["criterion"], stages["recover"]["method"]) == ("medium", "delt")


def test_a_thin_script_leaves_iterations_and_rounds_to_another_recipe(distill):
    """ITR is a share of delt's own iterations: another method was made for more of them, or for far fewer."""
    calls, process = distill("cifar10_resnet18_ipc10", DELT_METHOD="cda")
    assert not {"iterations", "round-iterations"} & set(dict(calls)["recover"])
    assert "METHOD=cda" not in process.stdout
    calls, _ = distill("cifar10_resnet18_ipc10", DELT_METHOD="cda", ITR=1000)
    assert dict(calls)["recover"]["iterations"] == "1000" and "round-iterations" not in dict(calls)["recover"]
    calls, process = distill("cifar10_resnet18_ipc10", DELT_METHOD="cda", ROUND_ITR=125)
    assert "METHOD=cda with rounds of ROUND_ITR=125 iterations" in process.stdout


@pytest.mark.parametrize("name", THIN)
def test_variables_of_thin_scripts_can_be_given(distill, tmp_path, name):
    given = dict(IPC=7, RANKER_PATH=tmp_path / "teacher.pth", DELT_ARCH="conv4", DELT_STAGES="ranking")
    calls, process = distill(name, ARCH="x86_64", **given)
    assert process.returncode == 0, process.stderr
    assert [(stage, flags["ipc"], flags["teacher-arch"]) for stage, flags in calls] == [("ranking", "7", "conv4")]


def test_selection_script(distill, tmp_path):
    paths = dict(RANKER_PATH=tmp_path / "teacher.pth", OUTPUT_DIR="chosen", RANKING_FILE="scores.csv")
    [(stage, flags)], _ = distill("select_medium_tiny_rn18_ep50_ipc50", **paths)
    assert (stage, flags["output-dir"], flags["ranking-file"]) == ("ranking", "chosen", "scores.csv")
    assert (flags["dataset"], flags["ipc"], flags["criterion"]) == ("tinyimagenet", "50", "medium")


@pytest.mark.parametrize(
    "name", [*sorted({*THIN} - {*EXPERIMENTS} - {"resnet18_imagenet1k_validation"}), EXPERIMENTS[0]]
)
def test_all_that_a_script_makes_lies_in_its_folder(distill, tmp_path, name):
    calls, process = distill(name, RUN_DIR="elsewhere", RANKER_PATH=tmp_path / "teacher.pth", INIT_PATH=None)
    assert process.returncode == 0, process.stderr
    made = [flags.get(flag) for _, flags in calls for flag in ("syn-dir", "output-dir", "ranking-file", "output")]
    assert {path.split("/")[0] for paths in made if paths for path in paths.split()} == {"elsewhere"}


def test_synthesis_script(distill):
    paths = dict(INIT_PATH="chosen", SYN_PATH="made", ITR=8, ROUND_ITR=1)
    [(stage, flags)], _ = distill("resnet18_imagenet1k_synthesis", **paths)
    assert (stage, flags["init-dir"], flags["syn-dir"], flags["ipc"]) == ("recover", "chosen", "made", "50")
    assert (flags["iterations"], flags["round-iterations"], flags["dataset"]) == ("8", "1", "imagenet1k")


def test_validation_script(distill):
    calls, _ = distill("resnet18_imagenet1k_validation", SYN_PATH="made", TRAIN_DIR=None)
    assert [stage for stage, _ in calls] == ["validate", *PAGES]
    assert calls[0][1]["syn-dir"] == calls[1][1]["after"] == "made"


def test_run_folder_is_named_for_the_script(distill):
    calls, _ = distill("cifar10_resnet18_ipc50", RUN_DIR=None)
    assert dict(calls)["recover"]["syn-dir"] == "runs/cifar10_resnet18_ipc50/syn"
