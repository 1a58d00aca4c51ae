"""--log: curves for those who asked, and one clear line where the package is missing."""

import importlib.util
import json
import sys

import pytest

from utils.fit import loggers
from utils.run.errors import UserError


class Kept(loggers.Logger):
    def __init__(self):
        self.points, self.closed = [], False

    def add(self, step, **values):
        self.points.append((step, values))

    def close(self):
        self.closed = True


@pytest.fixture
def kept(monkeypatch):
    """What the stages log, by the name of the curve."""
    found = {}
    monkeypatch.setattr(loggers, "check", lambda kind: None)
    monkeypatch.setattr(loggers, "start", lambda kind, folder, name, settings: found.setdefault(name, Kept()))
    return found


def test_validate_logs_each_epoch_of_each_student(place, kept):
    place.works("validate", epochs=3, seeds=2, evaluations=1, log="tensorboard")
    [path] = (place / "measured" / "results").glob("*.json")
    seeds = json.loads(path.read_text())["seeds"]
    assert list(kept) == [f"{path.stem}_seed0", f"{path.stem}_seed1"]
    for curve, seed in zip(kept.values(), seeds):
        assert curve.closed and [step for step, _ in curve.points] == [1, 2, 3]
        assert [values["loss"] for _, values in curve.points] == [entry["loss"] for entry in seed["curve"]]
        assert curve.points[-1][1]["top1"] == seed["top1"] and curve.points[0][1]["lr"] == 0.001


def test_squeeze_logs_its_epochs_and_its_accuracy(place, kept):
    printed = place.works("squeeze", log="tensorboard")
    [curve] = kept.values()
    losses = [values["loss"] for _, values in curve.points if "loss" in values]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert curve.closed and f"{curve.points[-1][1]['top1']:.2f}" in printed


@pytest.mark.parametrize("kind", loggers.KINDS)
@pytest.mark.parametrize("stage", ["squeeze", "validate"])
def test_a_missing_package_is_said_before_any_work(place, monkeypatch, stage, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    outcome = place.run(stage, log=kind)
    said = f"--log {kind} need the package {kind}, which is not installed: pip install {kind}"
    assert outcome.code == 2 and said in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (place / "squeezed.pth").exists() and not (place / "measured").exists()


def test_nothing_is_logged_unless_asked(place):
    place.works("validate", epochs=1)
    assert not (place / "measured" / "logs").exists()


@pytest.mark.slow  # TensorBoard is long in coming
@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_reads_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = loggers.start("tensorboard", tmp_path, "one", {"lr": 0.1})
    writer.add(1, loss=0.5)
    writer.add(2, loss=0.25, top1=30.0)
    writer.close()
    events = EventAccumulator(str(tmp_path / "one"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("top1")] == [(2, 30.0)]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_writes_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = loggers.start("wandb", tmp_path, "one", {"lr": 0.1})
    writer.add(1, loss=0.5)
    writer.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_without_a_login_is_an_error_of_the_user(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    class errors:
        Error = Refused

    class wandb:
        @staticmethod
        def init(**options):
            raise Refused("api_key not configured")

    wandb.errors = errors
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        loggers.start("wandb", tmp_path, "one", {})
