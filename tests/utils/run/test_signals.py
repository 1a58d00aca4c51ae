"""SIGINT and SIGTERM: progress is saved, and one line says how to resume."""

import os
import random
import shlex
import signal
import time

import pytest

from conftest import images
from recover.synthetic_set import SyntheticSet
from utils.run.resume import State
from utils.run.signals import SIGNALS, Stopped

LONG = {
    "squeeze": {"epochs": 500},
    "validate": {"epochs": 2000, "seeds": 1, "evaluations": 1},
    "recover": {"iterations": 4000, "round_iterations": 1000},
}


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_would_be_lost_a_signal_ends_at_once(number):
    reached = []
    with pytest.raises(Stopped) as stopped, SIGNALS.handled():
        send(number)
        reached.append("after it")
    assert stopped.value.number == number and str(stopped.value) == number.name and not reached


def test_in_the_midst_of_work_a_signal_waits_until_the_state_is_saved(tmp_path):
    state, steps = State(tmp_path / "x.state", {}), []
    with pytest.raises(Stopped), SIGNALS.handled(), state:
        for step in range(5):
            steps.append(step)
            if step == 2:
                send(signal.SIGTERM)
            state.save_if_due(lambda: {"steps": steps})
    assert steps == [0, 1, 2]
    assert State(tmp_path / "x.state", {}).load() == {"steps": [0, 1, 2]}


def test_a_second_signal_does_not_wait(tmp_path):
    steps = []
    with pytest.raises(Stopped), SIGNALS.handled(), State(tmp_path / "x.state", {}):
        for step in range(3):
            send(signal.SIGTERM)
            steps.append(step)
    assert steps == [0], "the first one waits for the end of a step, the second one for nothing"


def test_handlers_and_alarm_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with pytest.raises(Stopped), SIGNALS.handled():
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.alarm(0) == 0


def test_a_signal_in_the_last_step_ends_the_stage_after_the_unit(place, monkeypatch):
    """The unit is whole, so nothing of it is lost, and no other is begun."""
    save = SyntheticSet.save

    def signalled(self, *args, **options):
        save(self, *args, **options)
        send(signal.SIGTERM)

    monkeypatch.setattr(SyntheticSet, "save", signalled)
    outcome = place.run("recover", batch_size=4)
    assert outcome.code == 128 + signal.SIGTERM and "stopped by SIGTERM" in outcome.err
    assert {name.split("/")[0] for name in images(place.syn)} == {"ant"}
    monkeypatch.undo()
    place.works("recover", batch_size=4)
    assert len(images(place.syn)) == 12
    assert signal.alarm(0) == 0, "no alarm is left"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", LONG)
def test_a_signal_saves_and_says_how_to_resume(place, stage, number):
    child = place.fork(stage, **LONG[stage])
    time.sleep(2 + random.random())
    os.kill(child, number)
    asked = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert time.monotonic() - asked < 10, "within seconds"
    errors = (place / "told").read_text()
    assert code == 128 + number, errors
    last = errors.strip().splitlines()[-1]
    assert f"stopped by {signal.Signals(number).name}" in last and "the same command resumes: python" in last
    assert "Traceback" not in errors
    assert shlex.join(place.command(stage, **LONG[stage])) in last
    states = {"squeeze": [place / ".squeezed.pth.state"], "recover": [place.syn / ".units" / "000000.state"]}
    found = states.get(stage) or list((place / "measured" / "results").glob(".*.state"))
    assert len(found) == 1 and found[0].exists()
