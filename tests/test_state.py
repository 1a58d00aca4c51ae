"""State on disk: what is cut off goes on to the very same result, and a damaged file does no harm."""
import os
import random
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import ROOT, images
from helpers import few
from ranking.parts import Parts
from recover.units import Store
from utils.loader import TestImages
from utils.state import NoState, State


class Cut(Exception):
    """Stands for a kill."""


def cutting(monkeypatch, after):
    """Work dies at the `after`-th step that could be saved, right after having been saved."""
    keep, seen = State.keep, []

    def dies(self, content):
        seen.append(1)
        keep(self, content)
        if len(seen) == after:
            self.save(content())
            raise Cut

    monkeypatch.setattr(State, "keep", dies)


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("after", [1, 2, 5, 11])
def test_squeeze_goes_on_to_the_same_weights(place, monkeypatch, after):
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


@pytest.mark.parametrize("labels", ["teacher", "stored", "hard"])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_validate_goes_on_within_a_student(place, monkeypatch, labels, after):
    import json
    line = dict(epochs=4, seeds=1, evaluations=2, **{"teacher": {}, "hard": {"protocol": "hard"},
                                                     "stored": {"save_labels": place / "labels"}}[labels])
    place.works("validate", output_dir=place / "whole", **line)
    cutting(monkeypatch, after)
    with pytest.raises(Cut):
        place.run("validate", **line)
    monkeypatch.undo()
    assert not (place / "measured" / "results.csv").exists()
    place.works("validate", **line)
    whole, cut = (json.loads(next((place / name / "results").glob("*.json")).read_text())["seeds"][0]
                  for name in ("whole", "measured"))
    assert {**whole, "seconds": 0} == {**cut, "seconds": 0}
    assert not list((place / "measured" / "results").glob(".*"))


@pytest.mark.parametrize("criterion", ["medium", "herding"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_ranking_goes_on_with_what_is_scored(place, monkeypatch, criterion, after):
    """21 images. By score: batches of 2, so 11 of them, and three parts of 4; by features: a part a class, of 4 batches."""
    line = dict(criterion=criterion, batch_size=2, **({} if criterion == "medium" else {"ranking_file": None}))
    place.works("ranking", **line)
    cut = place / "cut"
    line.update(output_dir=cut, **({"ranking_file": place / "cut.csv"} if criterion == "medium" else {}))
    save, seen = Parts.save, []

    def dies(self, number, content):
        save(self, number, content)
        seen.append(number)
        if len(seen) == after:
            raise Cut

    monkeypatch.setattr(Parts, "save", dies)
    with pytest.raises(Cut):
        place.run("ranking", **line)
    monkeypatch.undo()
    assert not cut.exists() and not (place / "cut.csv").exists()
    looked = []
    monkeypatch.setattr(TestImages, "__getitem__", lambda self, key, real=TestImages.__getitem__: looked.append(key) or real(self, key))
    place.works("ranking", **line)
    assert images(cut) == images(place / "selected")
    if criterion == "medium":
        assert (place / "cut.csv").read_bytes() == (place / "ranking.csv").read_bytes()
        assert len(looked) == 11 - min(4 * after, 11)
    else:
        assert len(looked) == 12 - 4 * after
    assert not list(place.root.glob(".*parts")), "and nothing is left behind"


@pytest.mark.parametrize("after", [1, 3, 4, 7])
def test_recover_goes_on_within_a_unit(place, monkeypatch, after):
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
    (place.syn / name).write_bytes(content[:len(content) // 2])
    said = place.works("recover", batch_size=4)
    assert "3 of 3 units to do" in said and ("damaged" in said) == name.endswith("json")
    assert images(place.syn) == images(place / "whole") and not (place.syn / ".units").exists()


@few
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_state_is_no_state(tmp_path_factory, noise, position, value):
    folder = tmp_path_factory.mktemp("state")
    state = State(folder / "x.state", {"a": 1})
    state.save({"tensor": torch.arange(50.0), "word": "here"})
    good = (folder / "x.state").read_bytes()
    for content in (noise, good[:position], good[:position] + bytes([value ^ good[position] or 1]) + good[position + 1:]):
        (folder / "x.state").write_bytes(content)
        assert content == good or State(folder / "x.state", {"a": 1}).load() is None


def test_a_state_of_other_work_is_not_used(tmp_path):
    State(tmp_path / "x.state", {"lr": 1}).save({"number": 3})
    assert State(tmp_path / "x.state", {"lr": 2}).load() is None
    state = State(tmp_path / "x.state", {"lr": 1})
    assert state.load() == {"number": 3}
    with pytest.raises(ValueError), state:
        raise ValueError
    assert state.load(), "an error keeps it"
    with state:
        pass
    assert state.load() is None, "the end removes it"


def test_a_damaged_state_is_said(place, capsys):
    (place / ".squeezed.pth.state").write_bytes(b"cut off")
    assert "damaged" in place.works("squeeze")


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


def test_states_are_written_when_it_is_time(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    state, made = State(tmp_path / "x.state", {}, minutes=2), []
    for second in range(0, 601, 30):
        clock[0] = second
        state.keep(lambda: made.append(clock[0]) or {})
    assert made == [150, 300, 450, 600], "after more than two minutes each"
    NoState().keep(lambda: made.append("never"))
    assert "never" not in made


# --- one process at a time --------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage, output", [("squeeze", "squeezed.pth"), ("ranking", "selected"), ("ranking", "ranking.csv"),
                                           ("recover", "syn"), ("validate", "measured/results.csv")])
def test_a_second_process_is_refused_while_the_first_lives(place, stage, output):
    place.lines["recover"]["syn_dir"] = place / "syn"
    holder = subprocess.Popen([sys.executable, "-c", "import sys, time; from utils.files import LOCKS\n"
                               "with LOCKS.releasing(): LOCKS.hold(sys.argv[1]); print('held', flush=True); time.sleep(100)",
                               str(place / output)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    outcome = place.run(stage, **({"epochs": 1} if stage == "validate" else {}))
    assert outcome.code == 2 and f"process {holder.pid}" in outcome.err and str(place / output) in outcome.err
    assert not (place / output).exists()
    holder.kill()
    holder.wait()
    place.works(stage, **({"epochs": 1} if stage == "validate" else {}))
    assert not list(place.root.rglob(".*.lock")), "and no lock is left"


LONG = dict(squeeze=dict(epochs=500), validate=dict(epochs=2000, seeds=1, evaluations=1),
            recover=dict(iterations=4000, round_iterations=1000))


def test_a_signal_in_the_last_step_ends_the_stage_after_the_unit(place, monkeypatch):
    """The unit is whole, so nothing of it is lost, and no other is begun."""
    save = Store.save

    def signalled(self, unit, *args, **facts):
        save(self, unit, *args, **facts)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Store, "save", signalled)
    outcome = place.run("recover", batch_size=4)
    assert outcome.code == 128 + signal.SIGTERM and "stopped by SIGTERM" in outcome.err
    assert {name.split("/")[0] for name in images(place.syn)} == {"ant"}
    monkeypatch.undo()
    place.works("recover", batch_size=4)
    assert len(images(place.syn)) == 12
    assert signal.alarm(0) == 0, "no alarm is left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", LONG)
def test_a_signal_saves_and_says_how_to_go_on(place, stage, number):
    child = place.fork(stage, **LONG[stage])
    time.sleep(2 + random.random())
    os.kill(child, number)
    asked = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert time.monotonic() - asked < 10, "within seconds"
    told = (place / "told").read_text()
    assert code == 128 + number, told
    last = told.strip().splitlines()[-1]
    assert f"stopped by {signal.Signals(number).name}" in last and "goes on with it: python" in last and "Traceback" not in told
    assert shlex.join(place.command(stage, **LONG[stage])) in last
    state = {"squeeze": place / ".squeezed.pth.state", "recover": place.syn / ".units" / "000000.state"}.get(stage)
    found = [state] if state else list((place / "measured" / "results").glob(".*.state"))
    assert len(found) == 1 and found[0].exists()
