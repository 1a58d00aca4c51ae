"""The doors: a toy of each kind is one entry in one registry, made here, and the stages take it as their own."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD, images
from ranking.criteria import CRITERIA, Criterion
from recover.methods import METHODS
from recover.objectives import OBJECTIVES, Entry
from recover.objectives.base import Objective
from refusals import refused
from utils.data import prepare
from utils.data.datasets import DATASETS, DataSet
from utils.nets.models import NETWORKS, Network
from utils.run.seeds import generator
from validate import optim
from validate.optim import LR_SCHEDULES, OPTIMIZERS
from validate.protocols import PROTOCOLS
from validate.targets import LOSSES, Loss


def help_of(place, stage):
    outcome = place.run(stage, help=True)
    assert outcome.code == 0
    return outcome.out


# --- ranking: a criterion ----------------------------------------------------------------------------------------


def last_names(candidates, ipc):
    return sorted(range(len(candidates.paths)), key=lambda i: candidates.paths[i], reverse=True)[:ipc]


def hardest(candidates, ipc):
    """The images of which the teacher is least sure, the surest of them first."""
    order = sorted(range(len(candidates.paths)), key=lambda i: candidates.scores[i])
    return order[:ipc][::-1]


def largest_features(candidates, ipc):
    return candidates.features.norm(dim=1).argsort(descending=True)[:ipc].tolist()


def chosen(place, **line):
    place.works("ranking", **line)
    originals = {path.read_bytes(): path.stem for path in place.train.glob("*/*")}
    selected = images(place / "selected")
    return {name: [originals[data] for path, data in selected.items() if path.startswith(name)] for name in CLASSES}


def test_a_criterion_by_names(place, monkeypatch):
    monkeypatch.setitem(CRITERIA, "toy-names", Criterion(last_names, "nothing"))
    assert "toy-names" in help_of(place, "ranking")
    found = chosen(place, criterion="toy-names", teacher_path=None, ranking_file=None, ipc=3)
    assert found == {name: [f"{name}{k}" for k in (6, 5, 4)] for name in CLASSES}


def test_a_criterion_by_scores(place, monkeypatch):
    monkeypatch.setitem(CRITERIA, "toy-scores", Criterion(hardest, "scores"))
    found = chosen(place, criterion="toy-scores", ipc=3)
    with open(place / "ranking.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in CLASSES:
        scores = {row["img_path"][len(name) + 1 : -4]: float(row["score"]) for row in rows if row["class"] == name}
        assert found[name] == sorted(scores, key=scores.get)[:3][::-1]


def test_a_criterion_by_features(place, monkeypatch):
    monkeypatch.setitem(CRITERIA, "toy-features", Criterion(largest_features, "features"))
    monkeypatch.setitem(CRITERIA, "toy-reversed", Criterion(lambda *of: largest_features(*of)[::-1], "features"))
    found = chosen(place, criterion="toy-features", ranking_file=None, ipc=3)
    assert all(len(set(names)) == 3 for names in found.values())
    reverse = chosen(place, criterion="toy-reversed", ranking_file=None, ipc=3, overwrite=True)
    assert reverse == {name: names[::-1] for name, names in found.items()}


@pytest.mark.parametrize("needs", ["nothing", "features"])
@pytest.mark.parametrize("given", [[], [0, 1], [0, 1, 2, 3], [0, 1, 1], [0, 1, -1], [0, 1, 7]])
def test_a_criterion_that_does_not_give_what_it_is_asked_for_is_named(place, monkeypatch, needs, given):
    monkeypatch.setitem(CRITERIA, "toy-odd", Criterion(lambda candidates, ipc: given, needs))
    outcome = place.run("ranking", criterion="toy-odd", ranking_file=None, ipc=3)
    [line] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2 and "--criterion toy-odd" in line and f"'{CLASSES[0]}'" in line and "3 different" in line
    assert not (place / "selected").exists()


def drawn(candidates, ipc):
    order = torch.randperm(len(candidates.paths), generator=generator(*candidates.stream)).tolist()
    return order[:ipc]


@pytest.mark.parametrize("needs", ["scores", "features"])
def test_a_criterion_that_draws_has_the_seed_in_its_selection(place, monkeypatch, needs):
    monkeypatch.setitem(CRITERIA, "toy-draws", Criterion(drawn, needs, draws=True))
    line = dict(criterion="toy-draws", ranking_file=None, ipc=3)
    first = chosen(place, **line)
    assert json.loads((place / "selected" / "manifest.json").read_text())["settings"]["seed"] == 0
    assert "complete" in place.works("ranking", **line)
    before = images(place / "selected")
    other = place.run("ranking", **line, seed=1)
    assert other.code == 2 and "another run" in other.err and "seed" in other.err
    assert images(place / "selected") == before
    assert chosen(place, **line, seed=1, overwrite=True) != first


# --- recover: an objective and a method --------------------------------------------------------------------------


class TowardsShade(Objective):
    """Pulls every pixel of class k to a shade of grey: `darkest` + k * 0.3."""

    def __init__(self, darkest):
        super().__init__()
        self.darkest = darkest

    def forward(self, batch):
        shade = self.darkest + 0.3 * batch.labels.view(-1, 1, 1, 1)
        return (batch.pixels - shade).square().sum()

    def identity(self):
        return {"shade": self.darkest}


def shade_of(path):
    """Pixels as recover sees them: (INPUT, INPUT, 3)."""
    return np.asarray(Image.open(path).resize((INPUT, INPUT), Image.Resampling.BILINEAR)).astype(float)


def shade_method(monkeypatch):
    build = lambda teachers, settings: TowardsShade(settings.options["darkest"])  # noqa: E731
    monkeypatch.setitem(OBJECTIVES, "toy-shade", Entry(build, ("darkest",)))
    recipe = {**METHODS["delt"], "objective": "toy-shade", "iterations": 60, "round_iterations": 20, "darkest": 0.2}
    monkeypatch.setitem(METHODS, "toy-method", recipe)
    return dict(method="toy-method", iterations=None, round_iterations=None, min_crop=0.9)


@pytest.mark.parametrize("option, darkest", [(None, 0.2), ("darkest=0.35", 0.35)])
def test_an_objective_and_a_method(place, monkeypatch, option, darkest):
    line = shade_method(monkeypatch)
    shown = help_of(place, "recover")
    assert "toy-method" in shown and "toy-shade" in shown
    place.works("recover", option=option, **line)

    manifest = json.loads((place.syn / "manifest.json").read_text())
    changed = "min_crop=0.9" if option is None else f"min_crop=0.9 {option}"
    assert manifest["method"] == f"toy-method {changed}"
    assert manifest["settings"]["shade"] == darkest
    assert {entry["round"] for entry in manifest["images"].values()} == {0, 1, 2}  # of four images a class
    for before, after in zip(images(place.init), images(place.syn), strict=True):
        goal = 255 * (darkest + 0.3 * CLASSES.index(after.split("/")[0]))
        far, near = (shade_of(path) - goal for path in (place.init / before, place.syn / after))
        assert np.abs(near).mean() < 0.8 * np.abs(far).mean(), after
        assert "/000_" not in after or np.abs(near).mean() < 10, "the first one is there"


@pytest.mark.parametrize("value", [None, (1, 2)], ids=str)
def test_an_option_of_a_type_that_no_text_gives(place, monkeypatch, value):
    """The recipe holds it all the same, and the objective gets it."""
    line = shade_method(monkeypatch)
    monkeypatch.setitem(METHODS, "toy-method", {**METHODS["toy-method"], "own": value})
    build = lambda teachers, settings: TowardsShade(0.2 if settings.options["own"] == value else 0.9)  # noqa: E731
    monkeypatch.setitem(OBJECTIVES, "toy-shade", Entry(build, ("darkest", "own")))
    said = f"--option own=1,2: the recipe of toy-method has {value} for own"
    refused(place, "recover", said, "a number, a text, or True or False", **line, option="own=1,2")
    place.works("recover", **line)
    assert json.loads((place.syn / "manifest.json").read_text())["settings"]["shade"] == 0.2


def test_an_objective_beside_another_method(place, monkeypatch):
    shade_method(monkeypatch)
    monkeypatch.setitem(OBJECTIVES, "toy-shade", Entry(lambda teachers, settings: TowardsShade(0.2), ()))
    place.works("recover", objective="toy-shade")
    manifest = json.loads((place.syn / "manifest.json").read_text())
    assert manifest["method"] == "delt objective=toy-shade iterations=8 round_iterations=2"
    assert manifest["settings"]["shade"] == 0.2


@pytest.mark.parametrize(
    "reads, line, told",
    [
        (("darkest",), dict(r_bn=0.1), "--r-bn does nothing with toy-method, as its objective is toy-shade"),
        (("darkest",), dict(combine="mean"), "--combine does nothing with toy-method, as its objective is toy-shade"),
        (("dark", "r_bn"), {}, "recipe of toy-method has 'darkest', which is no setting and which its objective"),
        (("r_bn", "darkest"), dict(r_bn=0.1, option="darkest=0.3"), None),
    ],
    ids=str,
)
def test_an_objective_says_what_it_reads(place, monkeypatch, reads, line, told):
    line = {**shade_method(monkeypatch), **line}
    monkeypatch.setitem(OBJECTIVES, "toy-shade", Entry(lambda teachers, settings: TowardsShade(0.2), reads))
    if told:
        refused(place, "recover", told, **line)
    else:
        place.works("recover", **line)
        assert json.loads((place.syn / "manifest.json").read_text())["settings"]["r_bn"] == 0.1


# --- validate: a protocol, a loss, a schedule and an optimiser ---------------------------------------------------


def always_the_first_class(logits, target, step, protocol):
    return -logits.log_softmax(1)[:, 0]


def climbing(groups, protocol):
    """Gradient ascent: the loss rises."""
    return torch.optim.SGD(groups, protocol.lr, maximize=True)


def first_half(done, protocol):
    return 1.0 if done < 0.5 else 0.0


@pytest.fixture
def toy_protocol(monkeypatch):
    monkeypatch.setitem(LOSSES, "toy-loss", Loss(always_the_first_class, "probabilities"))
    monkeypatch.setitem(LR_SCHEDULES, "toy-schedule", optim.Entry(first_half))
    monkeypatch.setitem(OPTIMIZERS, "toy-optimizer", optim.Entry(climbing))
    toys = {"loss": "toy-loss", "lr_schedule": "toy-schedule", "optimizer": "toy-optimizer"}
    plain = {**PROTOCOLS["noaug"], "epochs": 6, "batch_size": 12, "lr": 0.05, "weight_decay": 0.0}
    monkeypatch.setitem(PROTOCOLS, "toy-protocol", {**plain, **toys})


def measured(place, **line):
    """The row in results.csv and the JSON of one student."""
    place.works("validate", **line)
    with open(place / "measured" / "results.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    [found] = [
        content
        for path in (place / "measured" / "results").glob("*.json")
        if (content := json.loads(path.read_text()))["protocol"] == row["protocol"]
    ]
    return row, found


def test_validate_shows_the_toys(place, toy_protocol):
    shown = help_of(place, "validate")
    for name in ("toy-protocol", "toy-loss", "toy-schedule", "toy-optimizer"):
        assert name in shown


def test_a_protocol_with_a_loss_a_schedule_and_an_optimizer(place, toy_protocol):
    row, found = measured(place, protocol="toy-protocol", epochs=None)
    assert (row["protocol"], row["epochs"]) == ("toy-protocol", "6")
    losses = [epoch["loss"] for epoch in found["seeds"][0]["curve"]]
    # Each epoch is one batch, whose loss stands before its step: three steps up, then none.
    assert losses[0] < losses[1] < losses[2] < losses[3]
    assert losses[4] == pytest.approx(losses[3], rel=1e-4) and losses[5] == pytest.approx(losses[3], rel=1e-4)
    settings = found["settings"]
    toys = (settings["loss"], settings["lr_schedule"], settings["optimizer"])
    assert toys == ("toy-loss", "toy-schedule", "toy-optimizer")


def test_flags_win_over_a_toy_protocol_too(place, toy_protocol):
    row, found = measured(place, protocol="toy-protocol", epochs=None, optimizer="adamw", lr_schedule="cosine")
    assert row["protocol"] == "toy-protocol optimizer=adamw lr_schedule=cosine"
    losses = [epoch["loss"] for epoch in found["seeds"][0]["curve"]]
    assert losses[-1] < losses[0] / 3
    # One of three classes, of the same number of test images each.
    assert float(row["top1"]) == pytest.approx(100 / 3, abs=0.01)


def test_a_loss_beside_another_protocol(place, toy_protocol):
    row, _ = measured(place, loss="toy-loss", epochs=30, lr=0.01)
    assert row["protocol"] == "delt epochs=30 lr=0.01 loss=toy-loss"
    assert float(row["top1"]) == pytest.approx(100 / 3, abs=0.01)


READERS = {
    "momentum": ("optimizer", "toy-optimizer", 0.5, "sgd"),
    "class_weight": ("loss", "toy-loss", 0.5, "mse"),
    "lr_steps": ("lr_schedule", "toy-schedule", 0.5, "steps"),
    "lr_factor": ("lr_schedule", "toy-schedule", 0.25, "steps"),
}


@pytest.mark.parametrize("flag", READERS)
def test_a_flag_is_for_the_entries_that_read_it(place, monkeypatch, toy_protocol, flag):
    """A toy that does not say so is refused with the name of who does; one that does is run, and named so."""
    setting, name, value, known = READERS[flag]
    said = f"--{flag.replace('_', '-')} does nothing without --{setting.replace('_', '-')} {known}"
    refused(place, "validate", said, protocol="toy-protocol", **{flag: value})
    table = {"optimizer": OPTIMIZERS, "loss": LOSSES, "lr_schedule": LR_SCHEDULES}[setting]
    monkeypatch.setitem(table, name, replace(table[name], reads=(flag,)))
    row, found = measured(place, protocol="toy-protocol", epochs=1, **{flag: value})
    assert flag in row["protocol"] and found["settings"][flag] in (value, [value])
    refused(place, "validate", f"{said} or {name}", protocol="delt", **{flag: value})


def test_a_loss_of_logits_may_read_the_temperature(place, monkeypatch):
    monkeypatch.setitem(LOSSES, "toy-loss", Loss(always_the_first_class, "logits"))
    row, _ = measured(place, loss="toy-loss", temperature=3)
    assert "temperature" not in row["protocol"]
    monkeypatch.setitem(LOSSES, "toy-loss", Loss(always_the_first_class, "logits", ("temperature",)))
    row, _ = measured(place, loss="toy-loss", temperature=3)
    assert "temperature=3" in row["protocol"]


# --- a network ---------------------------------------------------------------------------------------------------


def toy_network(match, num_classes, input_size):
    width = int(match[1])
    layers = [torch.nn.Conv2d(3, width, 3, stride=2), torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
    last = torch.nn.Linear(width * (input_size // 2 - 1) ** 2, num_classes)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), last)


def test_a_network_of_ones_own(place, monkeypatch):
    """As a teacher and as a student; no other name leads to it."""
    monkeypatch.setitem(NETWORKS, "toy_8 and the like", Network(r"toy_(\d+)", toy_network))
    for stage in ("squeeze", "validate"):
        assert "toy_8 and the like" in " ".join(help_of(place, stage).split())
    refused(place, "squeeze", "'toy_' is not known; use conv1", "toy_8 and the like", arch="toy_")
    place.works("squeeze", arch="toy_9")
    teacher = torch.load(place / "squeezed.pth", weights_only=True)
    assert teacher["arch"] == "toy_9" and teacher["model"]["0.weight"].shape == (9, 3, 3, 3)
    place.works("recover", teacher_path=place / "squeezed.pth")
    row, _ = measured(place, teacher_path=place / "squeezed.pth", student_arch="toy_4", epochs=1)
    assert row["student"] == "toy_4"


# --- a data set --------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_data(monkeypatch):
    facts = DataSet(classes=3, input_size=INPUT, mean=MEAN, std=STD, squeeze_epochs=3, images=(21, 18))
    monkeypatch.setitem(DATASETS, "toy-data", facts)
    return facts


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_every_stage_names_the_data_set(stock, toy_data, stage):
    assert "toy-data" in help_of(stock, stage)


def test_a_data_set_gives_its_facts(place, toy_data):
    place.works("squeeze", dataset="toy-data", epochs=None, input_size=None, mean=None, std=None)
    facts = torch.load(place / "squeezed.pth", weights_only=True)
    found = {name: facts[name] for name in ("input_size", "mean", "std", "num_classes", "epochs")}
    assert found == dict(input_size=INPUT, mean=list(MEAN), std=list(STD), num_classes=3, epochs=3)
    row, _ = measured(place, dataset="toy-data", protocol="hard", epochs=1)
    assert row["dataset"] == "toy-data"


def test_images_of_another_data_set_are_refused(place, toy_data):
    (place.train / "wasp").mkdir()
    (place.val / "wasp").mkdir()
    for folder in (place.train, place.val):
        Image.open(next((folder / "ant").iterdir())).save(folder / "wasp" / "0.png")
    outcome = place.run("squeeze", dataset="toy-data", input_size=None, mean=None, std=None)
    assert outcome.code == 2 and "toy-data has 3" in outcome.err and "4 classes" in outcome.err


def test_a_data_set_is_prepared_from_a_folder(place, toy_data, capsys):
    assert prepare.run(["toy-data", "--source", str(place.root), "--output", str(place / "data")]) == 0
    for split in ("train", "val"):
        assert images(place / "data" / split) == images(place / split)
    said = capsys.readouterr().out
    assert "3 classes, 21 images" in said and "3 classes, 18 images" in said and "note" not in said
