"""distill.sh on a set that another command made, or somebody else: what it is called, and its own protocol."""

import pytest

from result_files import write_manifest
from script_stubs import Stubs


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


def test_a_set_of_any_name_is_validated(distill, tmp_path):
    """Only recover needs a known recipe: images that came from elsewhere have the name that the user gives them."""
    calls, process = distill(
        "distill", DELT_STAGES="validate", DELT_METHOD="unknown", RANKER_PATH=tmp_path / "teacher.pth"
    )
    assert process.returncode == 0 and dict(calls)["validate"]["method"] == "unknown random"


def test_a_set_that_is_there_has_the_name_of_what_made_it(distill, tmp_path):
    """Or one of the user's own, but not another method's."""
    write_manifest(tmp_path / "made", arguments={"method": "cda"}, method="cda iterations=7")
    line = dict(SYN_PATH=tmp_path / "made", RANKER_PATH=tmp_path / "teacher.pth", PROTOCOL="hard own", BASELINES="")
    for name in "distill", "resnet18_imagenet1k_validation":
        for given in {}, {"DELT_METHOD": "cda"}:
            calls, process = distill(name, **line, DELT_STAGES="validate", **given)
            assert process.returncode == 0, process.stderr
            validate = dict(calls)["validate"]
            assert (validate["method"], validate["protocol"]) == ("cda", "hard cda")
        calls, process = distill(name, **line, DELT_STAGES="validate", DELT_METHOD="delt")
        assert process.returncode == 2 and not calls and len(process.stderr.splitlines()) == 1
        assert all(word in process.stderr for word in (f"{tmp_path}/made", "by cda, not by delt", "DELT_METHOD=cda"))
        calls, _ = distill(name, **line, DELT_STAGES="validate", DELT_METHOD="unknown")
        assert dict(calls)["validate"]["method"] == "unknown"
    calls, _ = distill("distill", **line, DELT_STAGES="recover validate")
    assert dict(calls)["validate"]["method"] == "delt", "it is made now, or recover says what differs"


TOP = {"criterion": "top", "ipc": 10, "candidates": 300, "crops": 5, "tiles": 1}


@pytest.mark.parametrize(
    "method, settings, name",
    [
        ("delt", {"criterion": "top", "ipc": 10}, "top"),
        ("own", TOP, "top candidates 300 crops 5 tiles 1"),
        ("mosaic", {"criterion": "top", "candidates": 80, "crops": 0, "tiles": 2}, "top candidates 2x tiles 2"),
        ("delt", {"criterion": ["top"]}, "medium"),
        ("delt", None, "medium"),
    ],
)
def test_a_selection_that_is_there_is_called_after_what_made_it(distill, tmp_path, method, settings, name):
    """By its manifest, where that says it; in the words in which a run that selects it has them."""
    if settings:
        write_manifest(tmp_path / "run" / "init", settings=settings)
    line = dict(DELT_STAGES="validate", RANKER_PATH=tmp_path / "teacher.pth", BASELINES="selection", DELT_METHOD=method)
    calls, process = distill("distill", **line)
    assert process.returncode == 0 and not process.stderr
    assert dict(calls)["validate"]["method"] == f"{method} {name}"


def test_a_selection_is_not_called_after_another_criterion(distill, tmp_path):
    write_manifest(tmp_path / "run" / "init", settings=TOP)
    line = dict(DELT_STAGES="recover validate", RANKER_PATH=tmp_path / "teacher.pth", BASELINES="selection")
    calls, process = distill("distill", **line, CRITERION="medium")
    assert process.returncode == 2 and not calls and len(process.stderr.splitlines()) == 1
    assert f"{tmp_path}/run/init was selected by top, not by medium: set CRITERION=top" in process.stderr
    for given in dict(CRITERION="top"), dict(CRITERION="medium", BASELINES="random"):
        assert distill("distill", **{**line, **given})[1].returncode == 0
    calls, process = distill("distill", **{**line, "CRITERION": "unknown", "BASELINES": ""})
    assert process.returncode == 2 and not calls and "CRITERION: 'ranking.criteria' knows no" in process.stderr


def test_a_selection_that_is_measured_is_made_by_what_it_is_called_after(distill):
    calls, process = distill("distill", BASELINES="selection", RANKING_ARGS="--criterion top")
    assert process.returncode == 2 and not calls and "RANKING_ARGS: --criterion would" in process.stderr
    assert distill("distill", BASELINES="", RANKING_ARGS="--criterion top")[1].returncode == 0
