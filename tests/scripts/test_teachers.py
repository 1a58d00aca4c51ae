"""distill.sh with several teachers, and with teachers of early epochs."""

import pytest

from script_stubs import Stubs

SEVERAL = "resnet18 conv3 timm/resnet18"


@pytest.fixture
def distill(tmp_path):
    return Stubs(tmp_path)


def of(calls, stage):
    return [flags for name, flags in calls if name == stage]


def test_each_is_trained_once_and_all_reach_recover_and_validate(distill, tmp_path):
    calls, process = distill("distill", TEACHERS=SEVERAL, SQUEEZE_EPOCHS=3)
    assert process.returncode == 0, process.stderr
    run = tmp_path / "run"
    paths = [f"{run}/teachers/{name}.pth" for name in ("resnet18", "conv3", "timm_resnet18")]
    trained = of(calls, "squeeze")
    assert [(flags["arch"], flags["output"], flags["epochs"]) for flags in trained] == [
        (arch, path, "3") for arch, path in zip(SEVERAL.split(), paths)
    ]
    for stage in "recover", "validate":
        [flags] = of(calls, stage)
        assert (flags["teacher-arch"], flags["teacher-path"]) == (SEVERAL, " ".join(paths))
    for stage in "ranking", "validate.report.diversity":
        for flags in of(calls, stage):
            assert (flags["teacher-arch"], flags["teacher-path"]) == ("resnet18", paths[0])
    assert of(calls, "validate")[0]["student-arch"] == "resnet18"


def test_one_alone_is_the_teacher_as_before(distill, tmp_path):
    calls, _ = distill("distill", TEACHERS="wrn_16_2")
    [trained] = of(calls, "squeeze")
    assert (trained["arch"], trained["output"]) == ("wrn_16_2", f"{tmp_path}/run/teacher.pth")
    assert "keep-epochs" not in trained and of(calls, "validate")[0]["student-arch"] == "wrn_16_2"


def test_the_epochs_whose_networks_recover_and_label(distill, tmp_path):
    calls, process = distill(
        "distill", TEACHERS="resnet18 conv3", KEEP_EPOCHS="1 5 10", TEACHER_EPOCH=1, LABEL_EPOCH=10
    )
    assert process.returncode == 0, process.stderr
    assert [flags["keep-epochs"] for flags in of(calls, "squeeze")] == ["1 5 10"] * 2

    def paths(epoch, *archs):
        return " ".join(f"{tmp_path}/run/teachers/{arch}.epoch{epoch}.pth" for arch in archs)

    assert of(calls, "ranking")[0]["teacher-path"] == paths(1, "resnet18")
    assert of(calls, "recover")[0]["teacher-path"] == paths(1, "resnet18", "conv3")
    assert of(calls, "validate")[0]["teacher-path"] == paths(10, "resnet18", "conv3")


@pytest.mark.parametrize("given, expected", [({}, "teacher.epoch5.pth"), ({"LABEL_EPOCH": ""}, "teacher.pth")])
def test_the_network_that_recovers_also_labels_unless_another_one_is_named(distill, tmp_path, given, expected):
    calls, _ = distill("distill", KEEP_EPOCHS=5, TEACHER_EPOCH=5, **given)
    assert of(calls, "recover")[0]["teacher-path"] == f"{tmp_path}/run/teacher.epoch5.pth"
    assert of(calls, "validate")[0]["teacher-path"] == f"{tmp_path}/run/{expected}"


def test_given_checkpoints_one_for_each(distill, tmp_path):
    (tmp_path / "b.epoch2.pth").touch()
    (tmp_path / "teacher.epoch2.pth").touch()
    (tmp_path / "b.pth").touch()
    given = dict(TEACHERS="resnet18 resnet18", RANKER_PATH=f"{tmp_path}/teacher.pth {tmp_path}/b.pth")
    calls, process = distill("distill", **given)
    assert process.returncode == 0 and not of(calls, "squeeze")
    assert of(calls, "recover")[0]["teacher-path"] == given["RANKER_PATH"]
    calls, process = distill("distill", TEACHER_EPOCH=2, LABEL_EPOCH="", **given)
    assert process.returncode == 0, process.stderr
    assert of(calls, "recover")[0]["teacher-path"] == f"{tmp_path}/teacher.epoch2.pth {tmp_path}/b.epoch2.pth"
    assert of(calls, "validate")[0]["teacher-path"] == given["RANKER_PATH"]
    calls, _ = distill("distill", TEACHERS="resnet18 conv3", RANKER_PATH="torchvision")
    assert of(calls, "recover")[0]["teacher-arch"] == "resnet18 conv3" and "teacher-path" not in calls[0][1]


@pytest.mark.parametrize(
    "variables, told",
    [
        (dict(TEACHERS="resnet18 conv3 resnet18"), "TEACHERS: names resnet18 twice"),
        (dict(TEACHERS="resnet18 unknown"), "TEACHERS: 'utils.nets.models' knows no 'unknown'"),
        (dict(TEACHER_EPOCH=1), "KEEP_EPOCHS has no 1"),
        (dict(KEEP_EPOCHS="10 5", TEACHER_EPOCH=5, LABEL_EPOCH=1), "KEEP_EPOCHS has no 1"),
        (dict(TEACHERS="resnet18 conv3", RANKER_PATH="teacher.pth"), "1 checkpoints for the 2 TEACHERS"),
        (dict(RANKER_PATH="torchvision", TEACHER_EPOCH=1), "no weights of single epochs"),
        (dict(TEACHERS="resnet18 conv3", DELT_STAGES="recover"), "no teacher at"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(distill, variables, told):
    calls, process = distill("distill", **variables)
    assert process.returncode == 2 and not calls and told in process.stderr
    assert len(process.stderr.splitlines()) == 1


# --- what a method reads of the real images -----------------------------------------------------------------------


def test_files_of_each_teacher_are_made_for_a_method_that_reads_them(distill, tmp_path):
    needs = "NEEDS_STATISTICS='--per-class --patch 4'\nNEEDS_BARYCENTERS=true"
    given = dict(TEACHERS="resnet18 timm/resnet18", IPC=3, KEEP_EPOCHS=1, TEACHER_EPOCH=1, NEEDS=needs)
    calls, process = distill("distill", BARYCENTERS_ARGS="--learn-weights", DELT_METHOD="wmdd", **given)
    assert process.returncode == 0, process.stderr
    run, names = tmp_path / "run", ("0-resnet18", "1-timm_resnet18")
    paths = [f"{run}/teachers/{name}.epoch1.pth" for name in ("resnet18", "timm_resnet18")]
    for stage, folder in ("squeeze.statistics", "statistics"), ("squeeze.barycenters", "barycenters"):
        found = of(calls, stage)
        assert [flags["output"] for flags in found] == [f"{run}/{folder}/{name}.safetensors" for name in names]
        assert [flags["teacher-path"] for flags in found] == paths
        assert [flags["teacher-arch"] for flags in found] == given["TEACHERS"].split()
        assert {flags["train-dir"] for flags in found} == {f"{tmp_path}/train"}
    assert all(flags["patch"] == "4" and "per-class" in flags for flags in of(calls, "squeeze.statistics"))
    assert all(flags["ipc"] == "3" and "learn-weights" in flags for flags in of(calls, "squeeze.barycenters"))
    files = [f"{run}/{folder}/{name}.safetensors" for folder in ("statistics", "barycenters") for name in names]
    assert of(calls, "recover")[0]["statistics"] == " ".join(files)
    order = [stage for stage, _ in calls]
    assert order.index("squeeze.statistics") > order.index("ranking") < order.index("recover")


def test_a_method_that_reads_none_makes_none(distill):
    calls, _ = distill("distill")
    assert not {"squeeze.statistics", "squeeze.barycenters"} & set(dict(calls))
    assert "statistics" not in of(calls, "recover")[0]


def test_what_a_method_reads_has_to_be_there(distill, tmp_path):
    given = dict(NEEDS="NEEDS_BARYCENTERS=true", DELT_METHOD="wmdd", RANKER_PATH=tmp_path / "teacher.pth")
    calls, process = distill("distill", DELT_STAGES="statistics recover", TRAIN_DIR=None, **given)
    assert process.returncode == 2 and not calls and "TRAIN_DIR is empty" in process.stderr
    calls, process = distill("distill", DELT_STAGES="recover", TRAIN_DIR=None, **given)
    assert process.returncode == 2 and not calls and "put statistics into DELT_STAGES" in process.stderr
    path = tmp_path / "run" / "barycenters" / "0-resnet18.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    calls, process = distill("distill", DELT_STAGES="recover", TRAIN_DIR=None, **given)
    assert process.returncode == 0 and of(calls, "recover")[0]["statistics"] == str(path)


def test_a_package_that_is_missing_is_said_before_a_teacher_is_trained(distill):
    given = dict(DELT_METHOD="wmdd", NEEDS="NEEDS_BARYCENTERS=true\nNEEDS_MISSING='POT, which is not installed: do'")
    calls, process = distill("distill", **given)
    assert process.returncode == 2 and not calls and len(process.stderr.splitlines()) == 1
    assert "wmdd needs the package POT, which is not installed: do" in process.stderr
    calls, process = distill("distill", DELT_STAGES="squeeze", **given)
    assert process.returncode == 0 and [stage for stage, _ in calls] == ["squeeze"]
