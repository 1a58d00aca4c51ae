"""Curves of work that was interrupted: they go on, and no point stands in them twice."""

import importlib.util
import json
import sys
import types

import pytest

from helpers import tree
from utils.fit import loggers
from utils.run.signals import Stopped

has_tensorboard = pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="no tensorboard")


class Server:
    """What wandb keeps: runs by their id, and of each the values of a step once, as it refuses earlier steps."""

    def __init__(self):
        self.runs, self.ids, self.stop_at = {}, [], None

    def init(self, *, id, resume, **options):
        assert resume == "allow"
        self.ids.append(id)
        self.runs.setdefault(id, {})
        return types.SimpleNamespace(log=lambda values, step: self.log(id, values, step), finish=lambda: None)

    def log(self, id, values, step):
        if step > max(self.runs[id], default=0):
            self.runs[id][step] = values
        if step == self.stop_at:
            self.stop_at = None
            raise Stopped(15)


@pytest.fixture
def server(monkeypatch):
    found = Server()
    errors = types.SimpleNamespace(Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=found.init, errors=errors))
    return found


LINES = {"validate": dict(epochs=5, save_every=0, evaluations=1), "squeeze": dict(epochs=5, save_every=0)}
NOTES = {"validate": "measured/logs", "squeeze": "logs"}


@pytest.mark.parametrize("stage", LINES)
def test_an_interrupted_run_goes_on_at_wandb(place, server, stage):
    server.stop_at = 3
    assert place.run(stage, log="wandb", **LINES[stage]).code == 128 + 15
    assert len(server.runs) == 1 and list(server.runs[server.ids[0]]) == [1, 2, 3]
    place.works(stage, log="wandb", **LINES[stage])
    assert len(server.ids) == 2 and len(server.runs) == 1, "the same run"
    [points] = server.runs.values()
    assert list(points) == [1, 2, 3, 4, 5] and all("loss" in values for values in points.values())
    assert not [name for name in tree(place / NOTES[stage]) if "wandb" in name], "the work is complete"


def test_the_same_work_done_anew_is_another_run(place, server):
    line = dict(log="wandb", **LINES["squeeze"])
    place.works("squeeze", **line)
    place.works("squeeze", overwrite=True, **line)
    assert len(set(server.ids)) == 2


def test_other_settings_are_another_run(place, server):
    server.stop_at = 3
    assert place.run("squeeze", log="wandb", **LINES["squeeze"]).code == 128 + 15
    place.works("squeeze", log="wandb", **{**LINES["squeeze"], "lr": 0.01, "overwrite": True})
    assert len(set(server.ids)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"id": 3}', '{"settings": "x", "id": "y"}'])
def test_a_damaged_note_is_another_run(tmp_path, server, content):
    loggers.start("wandb", tmp_path, "one", {"lr": 1}).close()
    [note] = tmp_path.glob(".*")
    note.write_text(content)
    loggers.start("wandb", tmp_path, "one", {"lr": 1}).close()
    loggers.start("wandb", tmp_path, "one", {"lr": 1}).close()
    assert server.ids[0] != server.ids[1] == server.ids[2]


def test_an_id_that_is_none_is_not_sent(tmp_path, server):
    loggers.start("wandb", tmp_path, "one", {}).close()
    [note] = tmp_path.glob(".*")
    note.write_text(json.dumps({**json.loads(note.read_text()), "id": "../x"}))
    loggers.start("wandb", tmp_path, "one", {}).close()
    assert server.ids[1] not in ("../x", server.ids[0])


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.slow  # TensorBoard is long in coming
@has_tensorboard
def test_tensorboard_has_no_point_twice(tmp_path):
    for steps in ((1, 2, 3, 4), (3, 4, 5)):
        with pytest.raises(Stopped), loggers.start("tensorboard", tmp_path, "one", {"lr": 1}) as log:
            for step in steps:
                log.add(step, loss=len(steps) * step)
            raise Stopped(15)
    events = read(tmp_path / "one")
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 4), (2, 8), (3, 9), (4, 12), (5, 15)]
    [text] = events.Tensors("settings/text_summary")
    assert b"lr: 1" in text.tensor_proto.string_val[0]


@pytest.mark.slow
@has_tensorboard
def test_what_was_added_is_there_if_the_process_is_killed(tmp_path):
    log = loggers.start("tensorboard", tmp_path, "one", {})
    log.add(1, loss=0.5)
    assert [event.value for event in read(tmp_path / "one").Scalars("loss")] == [0.5], "before any close"
    log.close()


@pytest.mark.slow
@has_tensorboard
@pytest.mark.parametrize("stage", LINES)
def test_an_interrupted_stage_goes_on_in_tensorboard(place, monkeypatch, stage):
    add = loggers._TensorBoard.add

    def stopping(self, step, **values):
        add(self, step, **values)
        if step == 3:
            raise Stopped(15)

    monkeypatch.setattr(loggers._TensorBoard, "add", stopping)
    assert place.run(stage, log="tensorboard", **LINES[stage]).code == 128 + 15
    monkeypatch.undo()
    place.works(stage, log="tensorboard", **LINES[stage])
    [folder] = [path for path in (place / NOTES[stage]).iterdir() if path.is_dir()]
    assert len(list(folder.glob("events*"))) == 2
    assert [event.step for event in read(folder).Scalars("loss")] == [1, 2, 3, 4, 5]


def test_nothing_is_written_where_nothing_is_added(tmp_path):
    """TensorBoard's folder appears with its first point."""
    loggers.start("tensorboard", tmp_path, "one", {}).close()
    assert tree(tmp_path) == []
