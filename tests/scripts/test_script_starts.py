"""distill.sh: which images a run starts from, who selects them, and whose scores are kept."""

import pytest

from script_stubs import Stubs


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


def test_a_start_from_noise_selects_nothing(distill, tmp_path):
    baselines = dict(BASELINES="random selection")
    for line in dict(DELT_METHOD="gvbsm", TEACHERS="conv3"), dict(DELT_INIT="noise"):
        calls, process = distill("distill", **line, **baselines)
        assert process.returncode == 0, process.stderr
        assert "ranking is skipped" in process.stdout and "selection is left out" in process.stdout
        assert [flags["criterion"] for stage, flags in calls if stage == "ranking"] == ["random"], "the baseline"
        assert dict(calls)["recover"]["init-dir"] == f"{tmp_path}/train", "it names the classes"
    for images in dict(DELT_INIT="images"), dict(RECOVER_ARGS="--init images"):
        calls, _ = distill("distill", DELT_METHOD="sre2l", **images)
        assert dict(calls)["recover"]["init-dir"] == f"{tmp_path}/run/init"


def test_a_start_from_noise_needs_no_training_images(distill, tmp_path):
    line = dict(DELT_METHOD="sre2l", DELT_STAGES="recover", TRAIN_DIR=None, RANKER_PATH=tmp_path / "teacher.pth")
    calls, process = distill("distill", **line, INIT_PATH="names")
    assert process.returncode == 0 and dict(calls)["recover"]["init-dir"] == "names", process.stderr
    calls, process = distill("distill", **line)
    assert process.returncode == 0 and "init-dir" not in dict(calls)["recover"], "the teacher names its classes, or not"


@pytest.mark.parametrize(
    "method, of_start, of_baseline",
    [
        ("delt", "ranking.csv", "ranking.csv"),
        ("mosaic", None, "ranking.csv"),  # with the file all images would be scored, and not a few
        ("rded", "ranking.csv", None),  # of crops
    ],
)
def test_scores_are_kept_where_others_can_use_them(distill, method, of_start, of_baseline):
    calls, process = distill("distill", RUN_DIR="here", DELT_METHOD=method, BASELINES="herding")
    assert process.returncode == 0, process.stderr
    files = [flags.get("ranking-file") for stage, flags in calls if stage == "ranking"]
    assert files == [name and f"here/{name}" for name in (of_start, of_baseline)]
    calls, _ = distill("distill", RUN_DIR="here", DELT_METHOD=method, BASELINES="", RANKING_FILE="own.csv")
    assert [flags["ranking-file"] for stage, flags in calls if stage == "ranking"] == ["own.csv"]


def test_starting_images_that_are_given_are_not_selected(distill):
    calls, process = distill("distill", INIT_PATH="own", BASELINES="random")
    assert process.returncode == 0 and "ranking is skipped: INIT_PATH names the starting images" in process.stdout
    assert [flags.get("criterion") for stage, flags in calls if stage == "ranking"] == ["random"]
    assert dict(calls)["recover"]["init-dir"] == "own"
    calls, _ = distill("distill", INIT_PATH="own", BASELINES="selection")
    assert dict(calls)["ranking"]["criterion"] == "medium", "it is measured"
    calls, _ = distill("distill", INIT_PATH="own", OUTPUT_DIR="own", BASELINES="")
    assert dict(calls)["ranking"]["output-dir"] == "own", "ranking makes them"


def test_a_selection_that_is_a_baseline_is_measured_once(distill):
    calls, process = distill("cifar10_conv3_ipc10", DELT_METHOD="edc")
    assert process.returncode == 0 and dict(calls)["validate"]["method"] == "edc random"
    assert "BASELINES: selection is left out: it is random" in process.stdout
    calls, _ = distill("distill", CRITERION="herding", BASELINES="selection herding")
    assert dict(calls)["validate"]["method"] == "delt herding"


def test_the_images_that_a_method_selects_are_where_the_synthetic_ones_are_said_to_be(distill, tmp_path):
    calls, process = distill("distill", DELT_METHOD="rded", SYN_PATH="mine", BASELINES="")
    assert process.returncode == 0 and dict(calls)["ranking"]["output-dir"] == "mine"
    assert dict(calls)["validate"]["syn-dir"] == "mine"
    line = dict(DELT_METHOD="rded", BASELINES="", DELT_STAGES="validate", RANKER_PATH=tmp_path / "teacher.pth")
    assert dict(distill("distill", SYN_PATH="mine", **line)[0])["validate"]["syn-dir"] == "mine"
    _, process = distill("distill", SYN_PATH="mine", OUTPUT_DIR="other", **line)
    assert process.returncode == 2 and "set one of them" in process.stderr
