"""Which results the report is made of."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import few
from result_files import write_result
from utils.run.errors import UserError
from validate.report import collect


def test_seeds_of_several_runs_are_one_result(tmp_path):
    write_result(tmp_path / "a", seeds=((0, 40.0), (1, 44.0)), syn_dir="s")
    write_result(tmp_path / "b", seeds=((1, 99.0), (2, 42.0)), syn_dir="s")
    [entry] = collect.read([tmp_path / "a", tmp_path / "b"])
    assert entry.top1 == [40.0, 44.0, 42.0], "a seed counts once, as it was met first"
    assert entry.mean("best_top1") == 43.0 and entry.mean("seconds") == 5.0
    assert (entry.dataset, entry.ipc, entry.method, entry.epochs) == ("cifar10", 10, "delt", 3)


def test_other_settings_are_another_result(tmp_path):
    write_result(tmp_path / "a", syn_dir="s")
    write_result(tmp_path / "b", syn_dir="s", settings={"lr": 0.5})
    assert len(collect.read([tmp_path / "a", tmp_path / "b"])) == 2


def test_what_is_compared_stands_together(tmp_path):
    for student, method in (("conv3", "delt"), ("alexnet", "delt"), ("conv3", "random")):
        write_result(tmp_path, method, name=student + method, student=student)
    assert [(one.student, one.method) for one in collect.read([tmp_path])] == [
        ("alexnet", "delt"),
        ("conv3", "delt"),
        ("conv3", "random"),
    ]


def test_images_of_a_run_that_was_moved(tmp_path):
    write_result(tmp_path / "here", syn_dir="/nowhere/run/syn")
    (tmp_path / "here" / "syn").mkdir()
    [entry] = collect.read([tmp_path / "here"])
    assert entry.set_dir == tmp_path / "here" / "syn"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"seeds": []}', "3", "null"])
def test_a_run_without_results(tmp_path, content):
    if content is not None:
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "x.json").write_text(content)
    with pytest.raises(UserError, match="results|result of|JSON"):
        collect.read([tmp_path])


WRONG = st.sampled_from([None, True, "x", [], {}, [3], {"a": 1}, 10**400, [None]])
PLACES = [
    *((name,) for name in ("dataset", "ipc", "teacher", "epochs", "syn_dir", "settings", "seeds", "arguments")),
    *(("seeds", 0, name) for name in ("seed", "top1", "top5", "seconds", "processes", "curve")),
    ("seeds", 1),
    ("seeds", 0, "curve", 1),
    *(("seeds", 0, "curve", 0, name) for name in ("epoch", "loss")),
]


FIRST = ("seeds", 0)


@pytest.mark.parametrize(
    "place, value",
    [
        *(((*FIRST, name), value) for name in ("top1", "seconds") for value in (math.nan, math.inf, 1e300)),
        ((*FIRST, "curve", 0, "loss"), math.nan),
        *(((name,), value) for name in ("epochs", "ipc", "images") for value in (10**30, -1)),
    ],
    ids=str,
)
def test_numbers_that_no_student_has_are_refused(tmp_path, place, value):
    path = write_result(tmp_path)
    content = inner = json.loads(path.read_text())
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no result of validate"):
        collect.read([tmp_path])


@few
@given(st.sampled_from(PLACES), WRONG, st.booleans())
def test_a_result_with_anything_in_it_is_read_or_refused(tmp_path_factory, place, value, remove):
    run = tmp_path_factory.getbasetemp() / "results of anything"
    path = write_result(run)
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    if remove:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(content))
    try:
        [entry] = collect.read([run])
    except UserError as error:
        assert str(path) in str(error)
        return
    assert entry.conditions and entry.title and entry.set_dir and all(isinstance(top1, float) for top1 in entry.top1)


def test_an_undamaged_result_is_read(tmp_path):
    write_result(tmp_path)
    [entry] = collect.read([tmp_path])
    assert entry.seeds[1].curve == [{"epoch": 1, "loss": 0.5}, {"epoch": 3, "loss": 0.1, "top1": 44.0}]


def test_entries_of_one_name_are_told_apart_by_the_first_words_that_differ():
    same = [("delt", "cifar10", "conv3", "a"), ("delt", "svhn", "conv3", "b"), ("cda", "svhn", "conv3", "b")]
    assert collect.told_apart(same) == ["delt (cifar10)", "delt (svhn)", "cda"]
    assert collect.told_apart([("delt", "x", "a"), ("delt", "x", "b")]) == ["delt (a)", "delt (b)"]
    assert collect.told_apart([("delt", "8 px", "y"), ("delt", "", "y")]) == ["delt (8 px)", "delt"]
    assert collect.told_apart([("delt", "x"), ("delt", "x")]) == ["delt", "delt"] and collect.told_apart([]) == []


@few
@given(st.lists(st.tuples(*[st.sampled_from("ab")] * 3), unique=True))
def test_different_entries_have_different_names(entries):
    assert len(set(collect.told_apart(entries))) == len(entries)
