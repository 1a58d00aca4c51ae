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
