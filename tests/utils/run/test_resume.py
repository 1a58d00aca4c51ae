"""State on disk: what is cut off resumes to the very same result, and a damaged file does no harm."""

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import images
from helpers import few
from refusals import refused
from utils.data.loader import EvalBatches
from utils.run.errors import UserError
from utils.run.resume import JointState, NoState, State
from utils.run.shared_work import SharedWork


class Cut(Exception):
    """Stands for a kill."""


def cutting(monkeypatch, after):
    """Work dies at the `after`-th step that could be saved, right after having been saved."""
    save_if_due, seen = State.save_if_due, []

    def dies(self, content):
        seen.append(1)
        save_if_due(self, content)
        if len(seen) == after:
            self.save(content())
            raise Cut

    monkeypatch.setattr(State, "save_if_due", dies)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


# --- the stages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 5, 11])
def test_squeeze_resumes_to_the_same_weights(place, monkeypatch, after):
    """Three batches of 8 an epoch, four epochs: cut in the first one, at an end, in the midst, before the last."""
    place.works("squeeze")
    cutting(monkeypatch, after)
    with pytest.raises(Cut):
        place.run("squeeze", output=place / "cut.pth")
    monkeypatch.undo()
    assert not (place / "cut.pth").exists() and (place / ".cut.pth.state").exists()
    place.works("squeeze", output=place / "cut.pth")
    whole, cut = weights(place / "squeezed.pth"), weights(place / "cut.pth")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert not (place / ".cut.pth.state").exists()


def test_squeeze_does_not_lose_a_run_to_another_one(place, monkeypatch):
    """An interrupted one, by other settings in its place, unless that is asked for."""
    place.works("squeeze", output=place / "whole.pth")
    cutting(monkeypatch, 2)
    with pytest.raises(Cut):
        place.run("squeeze")
    monkeypatch.undo()
    state = place / ".squeezed.pth.state"
    refused(place, "squeeze", state, "(lr: 0.02 -> 0.05)", "--overwrite", lr=0.05)
    cut = state.read_bytes()
    place.works("squeeze")
    whole, resumed = weights(place / "whole.pth"), weights(place / "squeezed.pth")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    (place / "squeezed.pth").unlink()
    (place / "squeezed_best.pth").unlink()
    state.write_bytes(cut)
    place.works("squeeze", lr=0.05, overwrite=True)
    assert torch.load(place / "squeezed.pth", weights_only=True)["settings"]["lr"] == 0.05


def test_a_pass_of_statistics_is_not_lost_to_another_one(place, monkeypatch):
    words = ["--train-dir", place.train, "--teacher-path", place.teacher, "--device", "cpu", "--compile", "off"]
    words += ["--output", place / "s.safetensors", "--batch-size", 8]
    cutting(monkeypatch, 1)
    with pytest.raises(Cut):
        place.start("squeeze.statistics", *words)
    monkeypatch.undo()
    state = place / ".s.safetensors.state"
    cut = state.read_bytes()
    outcome = place.start("squeeze.statistics", *words, "--per-class")
    assert outcome.code == 2 and f"{state}: holds an interrupted run of other settings" in outcome.err
    assert "per_class: False -> True" in outcome.err and state.read_bytes() == cut
    assert place.start("squeeze.statistics", *words, "--per-class", "--overwrite").code == 0
    assert not state.exists()


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["teacher", "stored", "hard", "averaged"])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_validate_resumes_within_a_student(place, monkeypatch, labels, after):
    changes = {
        "teacher": {},
        "hard": {"protocol": "hard"},
        "stored": {"save_labels": place / "labels"},
        "averaged": {"weight_average": 0.9},
    }
    line = {"epochs": 4, "seeds": 1, "evaluations": 2, **changes[labels]}
    place.works("validate", output_dir=place / "whole", **line)
    cutting(monkeypatch, after)
    with pytest.raises(Cut):
        place.run("validate", **line)
    monkeypatch.undo()
    assert not (place / "measured" / "results.csv").exists()
    place.works("validate", **line)
    whole, cut = (
        json.loads(next((place / name / "results").glob("*.json")).read_text())["seeds"][0]
        for name in ("whole", "measured")
    )
    assert {**whole, "seconds": 0} == {**cut, "seconds": 0}
    assert not list((place / "measured" / "results").glob(".*"))


@pytest.mark.parametrize("criterion", ["medium", "herding"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_ranking_resumes_with_what_is_scored(place, monkeypatch, criterion, after):
    """21 images in batches of 2. By score: 11 batches, in pieces of 4; by features: a piece a class, of 4 batches."""
    by_score = criterion == "medium"
    line = {"criterion": criterion, "batch_size": 2, **({} if by_score else {"ranking_file": None})}
    place.works("ranking", **line)
    cut = place / "cut"
    line |= {"output_dir": cut, **({"ranking_file": place / "cut.csv"} if by_score else {})}
    save, seen = SharedWork.save, []

    def dies(self, number, content):
        save(self, number, content)
        seen.append(number)
        if len(seen) == after:
            raise Cut

    monkeypatch.setattr(SharedWork, "save", dies)
    with pytest.raises(Cut):
        place.run("ranking", **line)
    monkeypatch.undo()
    assert not cut.exists() and not (place / "cut.csv").exists()
    read, original = [], EvalBatches.__getitem__
    monkeypatch.setattr(EvalBatches, "__getitem__", lambda self, key: read.append(key) or original(self, key))
    place.works("ranking", **line)
    assert images(cut) == images(place / "selected")
    if by_score:
        assert (place / "cut.csv").read_bytes() == (place / "ranking.csv").read_bytes()
        assert len(read) == 11 - min(4 * after, 11)
    else:
        assert len(read) == 12 - 4 * after
    assert not list(place.root.glob(".*")), "and nothing is left behind"


@pytest.mark.parametrize("after", [1, 3, 4, 7])
def test_recover_resumes_within_a_unit(place, monkeypatch, after):
    place.works("recover", syn_dir=place / "whole")
    cutting(monkeypatch, after)
    with pytest.raises(Cut):
        place.run("recover")
    monkeypatch.undo()
    assert (place.syn / ".units" / "000000.state").exists() and not images(place.syn)
    place.works("recover")
    assert images(place.syn) == images(place / "whole")
    assert not (place.syn / ".units").exists()


@pytest.mark.parametrize("name", [".units/000000.json", "ant/000_ant0.png"])
def test_a_truncated_file_of_a_finished_unit_is_done_again(place, monkeypatch, name):
    place.works("recover", syn_dir=place / "whole", batch_size=4)
    cutting(monkeypatch, 10)  # in the second unit: each has eight steps
    with pytest.raises(Cut):
        place.run("recover", batch_size=4)
    monkeypatch.undo()
    content = (place.syn / name).read_bytes()
    (place.syn / name).write_bytes(content[: len(content) // 2])
    printed = place.works("recover", batch_size=4)
    assert "3 of 3 units to do" in printed and ("damaged" in printed) == name.endswith("json")
    assert images(place.syn) == images(place / "whole") and not (place.syn / ".units").exists()


@pytest.mark.parametrize("stage", ["squeeze", "squeeze.statistics", "recover", "validate"])
def test_a_process_that_dies_with_its_result_written_leaves_no_state_behind(place, monkeypatch, stage):
    def run():
        if stage != "squeeze.statistics":
            return place.run(stage, **({} if stage == "recover" else {"save_every": 0}))
        words = ["--train-dir", place.train, "--teacher-path", place.teacher, "--save-every", 0, "--device", "cpu"]
        words += ["--precision", "fp32", "--compile", "off", "--output", place / "s.safetensors"]
        return place.start(stage, *words)

    def dies(self):
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(State, "remove", dies)
        with pytest.raises(Cut):
            run()
    assert stage == "recover" or list(place.root.rglob(".*.state")), "there is something to remove"
    run()
    assert "complete" in run().out
    assert not list(place.root.rglob(".*"))


def test_a_damaged_state_is_said(place):
    (place / ".squeezed.pth.state").write_bytes(b"cut off")
    assert f"{place / '.squeezed.pth.state'}: damaged" in place.works("squeeze")


# --- one state ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    content = {"tensor": torch.arange(50.0), "nested": {"numbers": [1, 2.5, None]}, "word": "here"}
    State(tmp_path / "x.state", {"a": 1}).save(content)
    found = State(tmp_path / "x.state", {"a": 1}).load()
    assert torch.equal(found.pop("tensor"), content.pop("tensor")) and found == content
    assert State(tmp_path / "y.state", {"a": 1}).load() is None


@few
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_state_is_no_state(tmp_path_factory, noise, position, value):
    folder = tmp_path_factory.mktemp("state")
    state = State(folder / "x.state", {"a": 1})
    state.save({"tensor": torch.arange(50.0), "word": "here"})
    good = (folder / "x.state").read_bytes()
    changed = good[:position] + bytes([value ^ good[position] or 1]) + good[position + 1 :]
    for content in (noise, good[:position], changed):
        (folder / "x.state").write_bytes(content)
        assert content == good or State(folder / "x.state", {"a": 1}).load() is None


def test_a_state_of_other_work_is_not_used(tmp_path):
    State(tmp_path / "x.state", {"lr": 1}).save({"number": 3})
    assert State(tmp_path / "x.state", {"lr": 2}).load() is None
    with pytest.raises(UserError, match=r"x\.state: .* \(lr: 1 -> 2\); .* --overwrite"):
        State(tmp_path / "x.state", {"lr": 2}).require_own()
    state = State(tmp_path / "x.state", {"lr": 1})
    state.require_own()
    assert state.load() == {"number": 3}
    with pytest.raises(ValueError), state:
        raise ValueError
    assert state.load(), "an error keeps it"
    with state:
        pass
    assert state.load() is None, "the end removes it"


def test_a_state_that_does_not_say_its_settings(tmp_path, monkeypatch, capsys):
    """As those of earlier versions: resumed by its own work, and given up, which is said, by other work."""
    with monkeypatch.context() as patched:
        save = torch.save
        plain = lambda saved, file: save({name: saved[name] for name in ("identity", "seconds", "content")}, file)  # noqa: E731
        patched.setattr(torch, "save", plain)
        State(tmp_path / "x.state", {"lr": 1}).save({"number": 3})
    State(tmp_path / "x.state", {"lr": 1}).require_own()
    assert State(tmp_path / "x.state", {"lr": 1}).load() == {"number": 3} and not capsys.readouterr().out
    State(tmp_path / "x.state", {"lr": 2}).require_own()
    assert f"{tmp_path / 'x.state'}: another version's" in capsys.readouterr().out
    assert State(tmp_path / "x.state", {"lr": 2}).load() is None


def test_seconds_add_up(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = State(tmp_path / "x.state", {})
    clock[0] += 7
    first.save({})
    clock[0] += 1000
    second = State(tmp_path / "x.state", {})
    second.load()
    clock[0] += 5
    assert second.seconds == 12


def test_seconds_of_ranks_that_work_together_are_summed(tmp_path, monkeypatch):
    """Seven seconds of three ranks, and after an interruption five of two."""
    clock, ranks = [100.0], [3]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("utils.run.distributed.get_world_size", lambda: ranks[0])
    monkeypatch.setattr("utils.run.distributed.broadcast_bytes", lambda content: content())
    first = JointState(tmp_path / "x.state", {})
    clock[0] += 7
    first.save({})
    clock[0] += 1000
    ranks[0] = 2
    second = JointState(tmp_path / "x.state", {})
    second.load()
    clock[0] += 5
    assert second.seconds == 7 * 3 + 5 * 2


def test_states_are_written_when_they_are_due(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    state, made = State(tmp_path / "x.state", {}, minutes=2), []
    for second in range(0, 601, 30):
        clock[0] = second
        state.save_if_due(lambda: made.append(clock[0]) or {})
    assert made == [150, 300, 450, 600], "after more than two minutes each"
    NoState().save_if_due(lambda: made.append("never"))
    assert "never" not in made
