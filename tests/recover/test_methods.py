"""Methods are named sets of flags; several teachers guide by their mean, or in turn."""

import hashlib
import json

import pytest

from conftest import images, snapshot
from recover.flags import share
from refusals import refused


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    "given, name",
    [
        (dict(method="sre2l", round_iterations=None), "sre2l iterations=8"),
        (dict(method="cda", round_iterations=None), "cda iterations=8"),
        (dict(lr=0.25, min_crop=0.08), "delt iterations=8 round_iterations=2"),  # as they are anyway
        (dict(method="cda", round_iterations=0, lr=0.5), "cda iterations=8 lr=0.5"),
        (dict(init="noise", ipc=4), "delt iterations=8 round_iterations=2 init=noise"),
        (dict(iterations=None, round_iterations=None, iterations_share=0.002), "delt iterations=8 round_iterations=1"),
        (dict(method="cda", iterations_share=0.002, iterations=6, round_iterations=None), "cda iterations=6"),
    ],
)
def test_the_name_says_what_was_changed(place, given, name):
    assert f"recover: {name}: " in place.works("recover", **given)
    assert manifest(place.syn)["method"] == name


def test_a_share_of_iterations_that_are_given_is_refused(place):
    refused(place, "recover", "--iterations-share does nothing beside --iterations and --round", iterations_share=0.5)
    assert "recover: delt iterations=8 round_iterations=2: " in place.works(
        "recover", iterations_share=0.5, shared=True
    )


@pytest.mark.parametrize(
    "iterations, round_iterations, stages, part, expected",
    [
        (4000, 500, 1, 0.25, (1000, 125)),
        (4000, 0, 1, 0.05, (200, 0)),
        (75, 0, 1, 0.5, (38, 0)),
        (2000, 0, 4, 0.1, (200, 0)),
        (2000, 0, 4, 0.001, (4, 0)),  # one in each stage
        (4000, 500, 1, 0.0001, (8, 1)),  # and in each round
        (4000, 500, 1, 1.0, (4000, 500)),
    ],
)
def test_a_part_of_the_work_has_as_many_rounds_and_stages(iterations, round_iterations, stages, part, expected):
    recipe = {"iterations": iterations, "round_iterations": round_iterations, "stages": stages}
    assert tuple(share(recipe, part).values()) == expected


@pytest.mark.parametrize(
    "name, flags",
    [
        ("cda", dict(round_iterations=0, batch_by="index")),
        (
            "fadrm",
            dict(
                round_iterations=0,
                batch_by="index",
                combine="turn",
                milestone=0,
                jitter=4,
                jitter_low=0,
                stages=4,
                stage_sizes=1,
            ),
        ),
    ],
)
def test_a_method_is_a_set_of_flags(place, name, flags):
    """The same flags given to another method compute the same, so that it is the same run."""
    line = dict(teacher_path=[place.teacher] * 2, ipc=2)
    place.works("recover", **flags, **line)
    before = snapshot(place.syn)
    assert "complete" in place.works("recover", method=name, round_iterations=None, **line)
    assert snapshot(place.syn) == before


@pytest.fixture
def two(place):
    """A second teacher, which normalises its images by other numbers."""
    line = dict(output=place / "other.pth", seed=1, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.25))
    place.works("squeeze", **line)
    return place


@pytest.mark.parametrize("combine", ["mean", "turn"])
def test_a_teacher_beside_itself_changes_nothing(place, combine):
    place.works("recover", syn_dir=place / "one")
    place.works("recover", teacher_path=[place.teacher, place.teacher], combine=combine)
    assert images(place.syn) == images(place / "one")


@pytest.mark.slow
def test_several_teachers_are_named_and_make_another_set(two):
    sets = {}
    for name, teachers in (("ab", "teacher other"), ("ba", "other teacher"), ("a", "teacher"), ("b", "other")):
        for combine in ("mean", "turn") if " " in teachers else (None,):
            two.syn = two / (f"{name}_{combine}" if combine else name)
            paths = [two / f"{teacher}.pth" for teacher in teachers.split()]
            two.works("recover", teacher_path=paths, syn_dir=two.syn, combine=combine)
            sets[two.syn.name] = images(two.syn)
            digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
            assert [teacher["sha256"] for teacher in manifest(two.syn)["teachers"]] == digests
    different = [sets[name] for name in ("ab_mean", "ab_turn", "ba_turn", "a", "b")]
    assert all(one != other for k, one in enumerate(different) for other in different[:k])


@pytest.mark.parametrize("given", [dict(combine="turn"), dict(teacher_path="swapped"), dict(teacher_path="one")])
def test_other_teachers_are_another_run(two, given):
    both = [two.teacher, two / "other.pth"]
    two.works("recover", teacher_path=both, iterations=2)
    before = snapshot(two.syn)
    paths = {"swapped": both[::-1], "one": both[:1]}.get(given.get("teacher_path"), both)
    outcome = two.run("recover", iterations=2, **{**given, "teacher_path": paths})
    assert outcome.code == 2 and "holds another run" in outcome.err and "--overwrite" in outcome.err
    assert snapshot(two.syn) == before
