"""SIGINT and SIGTERM: progress is saved, and one line says how to resume."""

import importlib
import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from conftest import images
from recover.synthetic_set import SyntheticSet
from utils.data.images import save_image
from utils.fit import evaluate
from utils.run import distributed
from utils.run.files import replacing
from utils.run.resume import State
from utils.run.signals import SIGNALS, Stopped
from validate.results import Run

LONG = {
    "squeeze": {"epochs": 50_000},
    "validate": {"epochs": 2000, "seeds": 1, "evaluations": 1},
    "recover": {"iterations": 4000, "round_iterations": 1000},
}


def send(number):
    signal.raise_signal(number)


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


def test_what_another_thread_writes_holds_no_signal_back(tmp_path):
    """No signal cuts it off: it comes to the first thread, which need not wait for the other."""
    written, go_on = threading.Event(), threading.Event()

    def write():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("whole")
            written.set()
            go_on.wait(60)

    thread = threading.Thread(target=write)
    with pytest.raises(Stopped), SIGNALS.handled():
        thread.start()
        written.wait(60)
        send(signal.SIGTERM)
    go_on.set()
    thread.join()
    assert (tmp_path / "x").read_text() == "whole"


def test_a_second_signal_does_not_wait_but_those_that_come_together_are_one(tmp_path, monkeypatch):
    """A scheduler signals every process, and the launcher passes it on: each rank has it twice."""
    clock, steps = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with pytest.raises(Stopped), SIGNALS.handled(), State(tmp_path / "x.state", {}):
        for step in range(9):
            send(signal.SIGTERM)
            steps.append(step)
            clock[0] += 0.5
    assert steps == [0, 1, 2, 3], "the first one waits for the end of a step, that after two seconds for nothing"


# --- the grace ----------------------------------------------------------------------------------------------------


@pytest.fixture
def grace(monkeypatch):
    return lambda seconds: monkeypatch.setenv("DELT_GRACE", str(seconds))


def test_the_grace_of_a_step_is_a_setting(tmp_path, grace):
    def step():
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            time.sleep(0.01)

    for seconds, saved in ((0.1, None), (5, {"step": 1}), (0, None)):
        grace(seconds)
        state = State(tmp_path / f"{seconds}.state", {})
        started = time.monotonic()
        with pytest.raises(Stopped), SIGNALS.handled(), state:
            send(signal.SIGTERM)
            step()
            state.save_if_due(lambda: {"step": 1})
        assert State(state.path, {}).load() == saved
        assert (time.monotonic() - started < 1.2) == (saved is None)


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf"])
def test_a_grace_that_is_no_number_of_seconds_is_one_line(place, said):
    outcome = place.run("recover", {"DELT_GRACE": said})
    assert outcome.code == 2 and f"DELT_GRACE={said}: is not a number of seconds" in outcome.err


def test_saving_is_never_cut_off(tmp_path, monkeypatch, grace):
    """The signals, and the end of the grace, come while the state is being written."""
    grace(0.05)
    content = {"numbers": torch.arange(1000)}

    def slow(path, mode):
        send(signal.SIGTERM)
        Path(path).write_bytes(b"half")
        time.sleep(0.2)
        monkeypatch.setattr(SIGNALS, "first", -100.0)
        send(signal.SIGINT)
        return open(path, mode)

    monkeypatch.setattr("utils.run.files.open", slow, raising=False)
    state, reached = State(tmp_path / "x.state", {}, minutes=0), []
    with pytest.raises(Stopped), SIGNALS.handled(), state:
        state.save_if_due(lambda: content)
        reached.append("after it")
    assert not reached, "it ends as soon as the state is whole"
    assert torch.equal(State(tmp_path / "x.state", {}).load()["numbers"], content["numbers"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.state"]


@pytest.mark.parametrize("saving", [False, True])
def test_no_file_is_cut_off(tmp_path, saving):
    """Whatever is written, and whether or not there is a state to be saved."""
    with pytest.raises(Stopped), SIGNALS.handled():
        SIGNALS.saving = saving
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            send(signal.SIGTERM)
            SIGNALS.stop_if_received()  # as the alarm does
            temporary.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_the_images_of_a_unit_are_all_written(place, monkeypatch, grace):
    grace(0.01)
    written = []

    def slow(path, pixels):
        if not written:
            send(signal.SIGTERM)
        time.sleep(0.02)
        written.append(path)
        save_image(path, pixels)

    monkeypatch.setattr("recover.synthetic_set.save_image", slow)
    outcome = place.run("recover", batch_size=4)
    assert outcome.code == 128 + signal.SIGTERM and len(written) == 4 and len(images(place.syn)) == 4
    assert (place.syn / ".units" / "000000.json").exists() and not (place.syn / ".units" / "000000.state").exists()


@pytest.mark.parametrize("stage", ["squeeze", "validate"])
def test_a_signal_while_the_test_set_is_evaluated_loses_no_step(place, monkeypatch, grace, stage):
    """The grace is over long before the batch is, and no state was saved before."""
    line = dict(epochs=4, evaluations=2, **({} if stage == "squeeze" else {"batch_size": 4}))
    output = {"squeeze": "output", "validate": "output_dir"}[stage]
    steps, tests, global_mean, ask = [], [], distributed.global_mean, evaluate.ask
    monkeypatch.setattr(distributed, "global_mean", lambda *args: steps.append(1) or global_mean(*args))

    def slow(*args, **options):
        tests.append(1)
        if len(tests) == interrupted:
            send(signal.SIGTERM)
            time.sleep(0.1)
        return ask(*args, **options)

    monkeypatch.setattr("utils.fit.evaluate.ask", slow)
    interrupted = 0
    place.works(stage, **line, **{output: place / "whole"})
    whole, total = result(stage, place, "whole"), len(steps)
    for interrupted in (1, 2):  # the test after the second epoch, and that after the last one
        grace(0.01)
        steps.clear(), tests.clear()
        name = f"cut{interrupted}"
        outcome = place.run(stage, **line, **{output: place / name})
        assert outcome.code == 128 + signal.SIGTERM and len(steps) == total * interrupted // 2
        assert len(tests) == interrupted
        place.works(stage, **line, **{output: place / name})
        assert len(steps) == total, "no step is done twice"
        assert result(stage, place, name) == whole


def result(stage, place, name):
    if stage == "squeeze":
        found = torch.load(place / name, weights_only=True)
        return found["top1"], {key: tensor.tolist() for key, tensor in found["model"].items()}
    [path] = (place / name / "results").glob("*.json")
    return [{**seed, "seconds": 0} for seed in json.loads(path.read_text())["seeds"]]


def test_a_signal_at_the_end_of_a_training_does_not_lose_its_result(place, monkeypatch):
    """It comes after the last step was saved, if it was, and before the result is on disk."""
    add = Run.add

    def signalled(self, *args, **options):
        send(signal.SIGTERM)
        add(self, *args, **options)

    monkeypatch.setattr(Run, "add", signalled)
    outcome = place.run("validate")
    assert outcome.code == 128 + signal.SIGTERM
    assert len((place / "measured" / "results.csv").read_text().splitlines()) == 2, "the header and the seed"
    monkeypatch.undo()
    assert "seed 0 is complete" in place.works("validate")


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
    """Seconds after a state was saved, so that it is saved anew."""
    importlib.import_module(f"{stage}.__main__")  # which takes seconds, and no handler is there yet
    line = {**LONG[stage], "save_every": 0.05}
    child = place.fork(stage, **line)
    until = time.monotonic() + 120
    while not (before := states(place)):
        assert time.monotonic() < until and os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    time.sleep(0.3)
    asked, saved = time.monotonic(), before[0].stat().st_mtime_ns
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert time.monotonic() - asked < 10, "within seconds"
    errors = (place / "told").read_text()
    assert code == 128 + number, errors
    last = errors.strip().splitlines()[-1]
    assert f"stopped by {signal.Signals(number).name}" in last and "the same command resumes: python" in last
    assert "Traceback" not in errors
    assert shlex.join(place.command(stage, **line)) in last
    assert states(place) == before and before[0].stat().st_mtime_ns > saved


def states(place):
    return [path for path in place.root.rglob("*.state") if ".partial" not in path.name]
