"""DD-Ranking's scores: the formulas, and when there is one."""

import math

import pandas as pd
import pytest

from result_files import write_result
from utils.run.errors import UserError
from validate.report import collect, scores


def test_label_robust_score():
    # w (syn - random) - (1 - w) (full - hard) = 0.5 * 0.1 - 0.5 * 0.4 = -0.15
    expected = (math.exp(-0.15) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.label_robust(0.5, 0.4, 0.9, 0.5) == pytest.approx(expected)
    assert scores.label_robust(1, 0, 0.7, 0.7, weight=1) == pytest.approx(1)
    assert scores.label_robust(0, 0, 1, 0, weight=0) == pytest.approx(0)


def test_augmentation_robust_score():
    expected = (math.exp(0.5 * 0.1 + 0.5 * -0.2) - math.exp(-1)) / (math.e - math.exp(-1))
    assert scores.augmentation_robust(0.5, 0.4, 0.1, 0.3) == pytest.approx(expected)


def table(run, full_hard):
    given = [] if full_hard is None else [(None, full_hard)]
    return scores.table(collect.read([run]), given).set_index("method")


def test_scores_need_what_they_are_made_of(tmp_path):
    write_result(tmp_path, "delt", "delt", ((0, 50.0),))
    write_result(tmp_path, "random", "delt", ((0, 40.0),))
    assert table(tmp_path, 90.0).empty
    write_result(tmp_path, "delt", "hard", ((0, 30.0),))
    write_result(tmp_path, "random", "hard", ((0, 20.0),))
    write_result(tmp_path, "random", "noaug", ((0, 35.0),))
    found = table(tmp_path, 90.0)
    # 0.5 * (0.5 - 0.4) - 0.5 * (0.9 - 0.3) = -0.25, and for random images -0.5 * (0.9 - 0.2) = -0.35.
    for method, difference in (("delt", -0.25), ("random", -0.35)):
        expected = (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))
        assert found.loc[method, "LRS"] == pytest.approx(expected)
    assert pd.isna(found.loc["delt", "ARS"]) and found.loc["random", "ARS"] == pytest.approx(0.2689, abs=1e-4)
    assert table(tmp_path, None)["LRS"].isna().all(), "nobody knows the whole set's accuracy"


def test_other_groups_lend_nothing(tmp_path):
    write_result(tmp_path, "delt", "delt", ((0, 50.0),))
    write_result(tmp_path, "delt", "hard", ((0, 30.0),))
    write_result(tmp_path, "random", "delt", ((0, 40.0),), ipc=50)
    assert table(tmp_path, 90.0).empty


def test_what_was_measured_under_several_settings_gives_no_score(tmp_path):
    write_result(tmp_path, "delt", "delt", ((0, 50.0),))
    write_result(tmp_path, "random", "delt", ((0, 40.0),))
    write_result(tmp_path, "delt", "hard", ((0, 30.0),))
    assert list(table(tmp_path, 90.0).index) == ["delt"]
    write_result(tmp_path, "delt", "hard", ((0, 90.0),), name="again", settings={"lr": 0.5})
    assert table(tmp_path, 90.0).empty


def searched(run, *pairs):
    """Which scores are said to have the searches, of results by these protocols."""
    for number, (method, protocol) in enumerate(pairs):
        write_result(run, method, protocol, ((0, 40.0 + number),))
    found = table(run, 90.0).loc["delt", "lr_search"]
    return found.split(" (")[0], found.count("not comparable")


SOFT, PLAIN, RANDOM = ("delt", "delt"), ("delt", "noaug"), ("random", "delt lr=search")
RANDOM_PLAIN = ("random", "noaug lr=search")


def test_what_was_searched_is_said(tmp_path):
    hard = ("delt", "hard lr=search")
    assert searched(tmp_path / "a", SOFT, hard, RANDOM) == ("LRS", 0)
    assert searched(tmp_path / "b", SOFT, hard, ("random", "delt")) == ("none", 1), "random images were not"
    assert searched(tmp_path / "c", SOFT, ("delt", "hard"), RANDOM) == ("none", 1), "hard labels were not"
    assert searched(tmp_path / "d", SOFT, PLAIN, RANDOM, RANDOM_PLAIN) == ("ARS", 0)
    assert searched(tmp_path / "e", SOFT, hard, PLAIN, RANDOM, ("random", "noaug")) == ("LRS", 1)
    assert searched(tmp_path / "f", SOFT, hard, PLAIN, RANDOM, RANDOM_PLAIN) == ("LRS, ARS", 0)


def test_what_was_searched_is_taken_before_what_was_not(tmp_path):
    write_result(tmp_path, "delt", "delt", ((0, 50.0),))
    write_result(tmp_path, "random", "delt", ((0, 40.0),))
    write_result(tmp_path, "delt", "hard", ((0, 30.0),))
    write_result(tmp_path, "random", "delt lr=search", ((0, 45.0),), name="r")
    write_result(tmp_path, "delt", "hard lr=search", ((0, 33.0),), name="h")
    # 0.5 * (0.5 - 0.45) - 0.5 * (0.9 - 0.33) = -0.26
    expected = (math.exp(-0.26) - math.exp(-1)) / (math.e - math.exp(-1))
    assert table(tmp_path, 90.0).loc["delt", "LRS"] == pytest.approx(expected)


@pytest.mark.parametrize("other", [dict(images=90), dict(processes=2), dict(settings={"batch_size": 25})], ids=str)
def test_random_images_that_were_measured_otherwise_lend_nothing(tmp_path, other):
    """Under a protocol of the same name."""
    alike = dict(images=100, settings={"batch_size": 50})
    write_result(tmp_path, "delt", "hard", ((0, 30.0),), **alike)
    write_result(tmp_path, "delt", "delt", ((0, 50.0),), **alike)
    write_result(tmp_path, "random", "delt", ((0, 40.0),), **{**alike, **other})
    assert table(tmp_path, 90.0).empty
    write_result(tmp_path, "random", "delt", ((0, 40.0),), **alike)
    assert list(table(tmp_path, 90.0).index) == ["delt"]


def test_students_of_another_input_size_lend_nothing(tmp_path):
    write_result(tmp_path, "random", "delt", ((0, 40.0),), settings={"input_size": 8})
    write_result(tmp_path, "delt", "delt", ((0, 50.0),), settings={"input_size": 8})
    write_result(tmp_path, "delt", "hard", ((0, 30.0),), settings={"input_size": 16})
    assert table(tmp_path, 90.0).empty
    write_result(tmp_path, "delt", "hard", ((0, 30.0),), settings={"input_size": 8}, name="alike")
    assert list(table(tmp_path, 90.0).index) == ["delt (8 px)"]


def test_random_images_under_another_teacher_lend_nothing(tmp_path):
    write_result(tmp_path, "delt", "delt", ((0, 50.0),))
    write_result(tmp_path, "delt", "hard", ((0, 30.0),))
    write_result(tmp_path, "random", "delt", ((0, 40.0),), settings={"teachers": ["trained anew"]})
    assert table(tmp_path, 90.0).empty


def of_students(run, *students):
    """For each student what its LRS is made of, but the whole set; random images have 40, delt 50 and 30."""
    for student in students:
        for method, protocol, top1 in (("delt", "delt", 50.0), ("random", "delt", 40.0), ("delt", "hard", 30.0)):
            name = f"{student} {method} {protocol}"
            write_result(run, method, protocol, ((0, top1),), student=student, name=name)


def robust(run, *full_hard):
    found = scores.table(collect.read([run]), full_hard)
    return dict(zip(found["student"], found["LRS"]))


def test_what_is_given_for_the_whole_set_is_of_the_students_that_the_teacher_is_not_of(tmp_path, monkeypatch, capsys):
    """A resnet18 teacher of 90 %, whatever is given for the others."""
    of_students(tmp_path, "resnet18", "conv3")
    monkeypatch.setattr(scores, "teacher_top1", lambda entry: 90.0 if entry.student == "resnet18" else None)
    expected = {"resnet18": scores.label_robust(0.5, 0.4, 0.9, 0.3), "conv3": scores.label_robust(0.5, 0.4, 0.6, 0.3)}
    assert robust(tmp_path, (None, 60.0)) == robust(tmp_path, ("conv3", 60.0)) == pytest.approx(expected)
    assert capsys.readouterr().out == ""
    assert robust(tmp_path, ("resnet18", 60.0)) == pytest.approx({"resnet18": expected["resnet18"]})
    assert "--full-hard resnet18=60: no LRS needs it" in capsys.readouterr().out


def test_what_could_be_of_several_students_has_to_say_which(tmp_path):
    of_students(tmp_path, "conv2", "conv3")
    with pytest.raises(UserError, match="--full-hard 60: could be of conv2 on cifar10, conv3 on cifar10; .*ARCH=PERC"):
        robust(tmp_path, (None, 60.0))
    found = robust(tmp_path, ("conv2", 60.0), ("conv3", 80.0))
    assert found["conv3"] == pytest.approx(scores.label_robust(0.5, 0.4, 0.8, 0.3)) and found["conv2"] > found["conv3"]


def test_two_figures_of_one_student_are_refused(tmp_path):
    of_students(tmp_path, "conv3")
    with pytest.raises(UserError, match="--full-hard conv3=80: 60 was given for conv3 as well"):
        robust(tmp_path, (None, 60.0), ("conv3", 80.0))
    assert robust(tmp_path, (None, 60.0), ("conv3", 60.0)) == robust(tmp_path, (None, 60.0))


def test_random_images_that_were_drawn_anew_take_the_place_of_the_earlier_ones_in_scores_too(tmp_path):
    of_students(tmp_path, "conv3")
    settings = {"images": "the earlier draw"}
    write_result(tmp_path, "random", "delt", ((0, 10.0),), student="conv3", settings=settings, name="r", set="0" * 64)
    assert robust(tmp_path, (None, 60.0))["conv3"] == pytest.approx(scores.label_robust(0.5, 0.4, 0.6, 0.3))
    write_result(tmp_path, "random", "delt", ((0, 10.0),), student="conv3", settings=settings, name="r")
    assert robust(tmp_path, (None, 60.0)) == {}, "of two sets none"
