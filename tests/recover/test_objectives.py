"""An objective with state, added from outside of the package: it is saved, restored and reset with the units."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, COLOURS, INPUT, draw, images, snapshot
from recover.methods import METHODS
from recover.objectives import OBJECTIVES, Entry
from recover.objectives.base import Objective, combined

LINE = dict(method="drift", iterations=8, round_iterations=2, batch_size=8)  # two units: ant and moth, zebra
FIRST_AVERAGE = (0.5, 0.25, 0.75)


class Drift(Objective):
    """Pulls a running average of the images' mean colours, m <- decay * m + (1 - decay) * s, to a goal that moves."""

    def __init__(self, decay, calls):
        super().__init__()
        self.register_buffer("average", torch.tensor(FIRST_AVERAGE))
        self.decay, self.calls = decay, calls

    def forward(self, batch):
        if self.calls is not None:
            self.calls(batch, self.average.clone())
        average = self.decay * self.average + (1 - self.decay) * batch.pixels.mean((0, 2, 3))
        with torch.no_grad():
            self.average.copy_(average)
        return 1000 * (average - 0.3 - 0.02 * batch.iteration).square().sum()

    def state(self):
        return {"average": self.average}

    def identity(self):
        return {"drift": {"decay": self.decay}}


class Calls:
    """What the objective was called with; `stop_at` (number of a call) gets a signal to stop in the middle of it."""

    def __init__(self):
        self.batches, self.averages, self.stop_at = [], [], None

    def __call__(self, batch, average):
        self.batches.append(batch)
        self.averages.append(average)
        if len(self.batches) == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    @property
    def iterations(self):
        return [batch.iteration.item() for batch in self.batches]


@pytest.fixture
def calls(monkeypatch):
    """The recorder of the objective `drift`, which is registered for the test, with a method that has an option."""
    calls = Calls()

    def build(teachers, settings):
        terms = [Drift(settings.options["decay"], calls) for _ in teachers]
        return combined(terms, settings.combine)

    recipe = {**METHODS["delt"], "objective": "drift", "decay": 0.8, "bright": False}
    monkeypatch.setitem(OBJECTIVES, "drift", Entry(build, ("combine", "decay", "bright")))
    monkeypatch.setitem(METHODS, "drift", recipe)
    return calls


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_it_is_called_with_pixels_labels_members_and_iterations(place, calls):
    """Batches are units of two classes of four images; of each class one image joins every two iterations."""
    place.works("recover", **LINE)
    assert calls.iterations == [*range(8), *range(8)]
    for number, batch in enumerate(calls.batches):
        labels = [0, 1] if number < 8 else [2]
        members = {4 * k + position for k in range(len(labels)) for position in range(4) if position <= number % 8 // 2}
        assert set(batch.members.tolist()) == members and len(batch.members) == len(batch.images) == len(members)
        assert batch.labels.tolist() == [labels[member // 4] for member in batch.members.tolist()]
        pixels = batch.pixels
        assert pixels.shape[1:] == (3, INPUT, INPUT)
        assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6 and pixels.std() > 0.05


def test_its_pixels_are_those_of_the_files(place, calls):
    for name, colour in COLOURS.items():
        shutil.rmtree(place.init / name)
        draw(place.init / name, colour, 4, name, INPUT)
    place.works("recover", **LINE, lr=0, min_crop=1)
    first = calls.batches[1]
    files = [sorted((place.init / CLASSES[label]).iterdir())[0] for label in (0, 1)]
    assert first.members.tolist() == [0, 4]
    for pixels, file in zip(first.pixels, files):
        stored = torch.tensor(np.asarray(Image.open(file)) / 255).permute(2, 0, 1).float()
        assert min((pixels - seen).abs().max() for seen in (stored, stored.flip(-1))) < 1e-5


def test_every_unit_starts_with_fresh_state(place, calls):
    place.works("recover", **LINE)
    fresh = torch.tensor(FIRST_AVERAGE)
    assert torch.equal(calls.averages[0], fresh) and torch.equal(calls.averages[8], fresh)
    assert not any(torch.equal(average, fresh) for k, average in enumerate(calls.averages) if k not in (0, 8))


@pytest.mark.parametrize("steps", [1, 5, 8, 11])
def test_a_stopped_unit_resumes_with_its_state(place, calls, steps):
    """Stopped in the first or a later round, at the end of the first unit, and in the second unit."""
    place.works("recover", syn_dir=place / "whole", **LINE)
    averages = calls.averages.copy()
    calls.batches.clear(), calls.averages.clear()
    calls.stop_at = steps
    assert place.run("recover", **LINE).code == 128 + signal.SIGTERM
    assert len(calls.batches) == steps
    place.works("recover", **LINE)
    assert calls.iterations == [*range(8), *range(8)], "no step was computed twice"
    assert all(torch.equal(found, expected) for found, expected in zip(calls.averages, averages, strict=True))
    assert images(place.syn) == images(place / "whole")


@pytest.mark.parametrize("steps", [1, 9, 12])
def test_the_result_does_not_depend_on_the_number_of_processes(place, calls, steps):
    """The first of two is stopped in its first unit, or in its second one; the other process does the rest."""
    place.works("recover", syn_dir=place / "whole", **LINE)
    calls.stop_at = len(calls.batches) + steps
    assert place.run("recover", {"RANK": "0", "WORLD_SIZE": "2"}, **LINE).code == 128 + signal.SIGTERM
    place.works("recover", {"RANK": "1", "WORLD_SIZE": "2"}, **LINE)
    assert images(place.syn) == images(place / "whole")
    assert len(calls.batches) == 2 * 16, "no step was computed twice"


@pytest.mark.parametrize("combine", ["mean", "turn"])
def test_several_objectives_keep_a_state_each(place, calls, combine):
    line = {**LINE, "teacher_path": [place.teacher] * 2, "combine": combine}
    place.works("recover", syn_dir=place / "whole", **line)
    averages = calls.averages.copy()
    # Of two that take turns, each sees every second iteration; of two that are averaged, each sees all.
    other = averages[1]
    assert torch.equal(other, torch.tensor(FIRST_AVERAGE))
    assert not torch.equal(averages[2], averages[0])
    calls.batches.clear(), calls.averages.clear()
    calls.stop_at = 5
    assert place.run("recover", **line).code == 128 + signal.SIGTERM
    place.works("recover", **line)
    assert all(torch.equal(found, expected) for found, expected in zip(calls.averages, averages, strict=True))
    assert images(place.syn) == images(place / "whole")
    assert "drift" in json.dumps(manifest(place.syn)["settings"])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_state_is_kept_when_it_is_compiled(place, calls, monkeypatch):
    alone = Entry(lambda teachers, settings: Drift(settings.options["decay"], None), ("decay", "bright"))
    monkeypatch.setitem(OBJECTIVES, "drift", alone)
    for compile in ("on", "off"):
        place.works("recover", syn_dir=place / compile, compile=compile, **LINE)
    for name in images(place / "on"):
        on, off = (np.asarray(Image.open(place / folder / name)).astype(int) for folder in ("on", "off"))
        assert np.abs(on - off).max() <= 1, "rounding"


def test_an_option_is_a_setting_of_its_own(place, calls):
    place.works("recover", **LINE)
    found = manifest(place.syn)
    assert found["method"] == "drift iterations=8 round_iterations=2"
    assert found["settings"]["decay"] == 0.8 and found["settings"]["drift"] == {"decay": 0.8}
    before = snapshot(place.syn)
    outcome = place.run("recover", option="decay=0.5", **LINE)
    assert outcome.code == 2 and "decay: 0.8 -> 0.5" in outcome.err and "--overwrite" in outcome.err
    assert snapshot(place.syn) == before

    place.works("recover", option=["decay=0.5", "bright=true"], syn_dir=place / "other", **LINE)
    found = manifest(place / "other")
    assert found["method"] == "drift iterations=8 round_iterations=2 decay=0.5 bright=True"
    assert found["settings"]["decay"] == 0.5 and found["settings"]["drift"] == {"decay": 0.5}
    assert found["settings"]["bright"] is True
    assert images(place / "other") != images(place.syn)


@pytest.mark.parametrize(
    "option, said",
    [
        ("speed=3", "decay"),
        ("lr=0.1", "decay"),
        ("decay=fast", "'fast' is not a finite number"),
        ("decay=nan", "'nan' is not a finite number"),
        ("decay", "'' is not a finite number"),
        ("bright=2", "'2' is not true or false"),
    ],
)
def test_a_wrong_option_is_one_line(place, calls, option, said):
    before = snapshot(place.root)
    outcome = place.run("recover", option=option, **LINE)
    assert outcome.code == 2 and outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert option in outcome.err and said in outcome.err
    assert snapshot(place.root) == before


def test_a_method_without_options_says_so(place):
    outcome = place.run("recover", option="decay=0.5")
    assert outcome.code == 2 and "decay=0.5" in outcome.err and "none" in outcome.err
