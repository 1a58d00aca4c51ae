"""Laps: no second is lost or counted twice."""

import time

from utils.run.stopwatch import Stopwatch


def test_laps_follow_one_another(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, laps = Stopwatch(), []
    for seconds in (3, 0, 4.5):
        now[0] += seconds
        laps.append(clock.lap())
    assert laps == [3, 0, 4.5] and sum(laps) == now[0] - 50
