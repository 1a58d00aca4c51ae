"""--lr search: the best of five rates by one seed, the same as if each had been given."""

import csv
import json

import pytest

from conftest import images
from refusals import refused
from validate import protocols
from validate.flags import chosen_protocols
from validate.results import Result

LINE = dict(protocol="hard", epochs=2, student_arch="conv3", batch_size=6)
RATES = ("0.0001", "0.0003", "0.001", "0.003", "0.01")  # of conv3: 0.001 as published


def rows(place, folder):
    with open(place / folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def content(place, folder="measured"):
    [path] = (place / folder / "results").glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_best_rate_is_taken(place):
    given = {}
    for rate in RATES:
        place.works("validate", lr=rate, seeds=2, output_dir=place / rate, **LINE)
        given[rate] = [float(row["top1"]) for row in rows(place, rate)]
    best = max(RATES, key=lambda rate: given[rate][0])
    assert len({top1[0] for top1 in given.values()}) > 1, "there is something to choose"

    said = place.works("validate", lr="search", seeds=2, **LINE)
    assert f"takes {best}" in said
    found = content(place)
    assert found["protocol"].startswith("hard") and "lr=search" in found["protocol"]
    assert found["settings"]["lr"] == float(best) and found["settings"]["lr_search"] == [float(rate) for rate in RATES]
    assert {rate: round(top1, 2) for rate, top1 in found["lr_search"].items()} == {r: given[r][0] for r in RATES}
    assert [float(row["top1"]) for row in rows(place, "measured")] == given[best], "both seeds, by that rate"
    trials = rows(place, "measured/lr-search")
    assert [(row["seed"], float(row["top1"])) for row in trials] == [("0", given[rate][0]) for rate in RATES]
    assert all(f"lr={rate}" in row["protocol"] for rate, row in zip(RATES, trials))


def test_the_last_epochs_top1_decides_and_of_equal_rates_the_smallest(place, monkeypatch):
    last, best = (dict(zip(RATES, top1)) for top1 in ((40.0, 60.0, 60.0, 50.0, 10.0), (90.0, 60.0, 70.0, 95.0, 10.0)))

    def train(student, source, stream, *_):
        rate = f"{stream.protocol.lr:g}"
        return Result(
            stream.seed, last[rate], best[rate], 100.0, 1.0, [{"epoch": 1, "loss": 1.0, "top1": last[rate]}], 1
        )

    monkeypatch.setattr("validate.measure.train", train)
    assert "takes 0.0003" in place.works("validate", lr="search", **LINE)
    assert content(place)["settings"]["lr"] == 0.0003


def test_it_resumes_and_is_complete(place):
    place.works("validate", lr="search", **LINE)
    before = images(place / "measured"), rows(place, "measured")
    said = place.works("validate", lr="search", **LINE)
    assert said.count("is complete") == len(RATES) + 1
    assert before == (images(place / "measured"), rows(place, "measured"))


def test_a_rate_that_was_given_is_another_result_than_one_that_was_found(place):
    place.works("validate", lr="search", **LINE)
    rate = content(place)["settings"]["lr"]
    place.works("validate", lr=rate, **LINE)
    one, two = rows(place, "measured")
    assert one["top1"] == two["top1"] and one["settings"] != two["settings"]


def test_a_rate_at_which_nothing_is_learnt_is_left_out(place, monkeypatch):
    monkeypatch.setattr(protocols, "SEARCHED", (1.0, 1e30))
    said = place.works("validate", lr="search", save_every=0, **LINE)
    assert "1e+27 is left out: " in said and "loss is" in said and "takes 0.001" in said
    assert list(content(place)["lr_search"]) == ["0.001"]
    assert not list((place / "measured").rglob("*.state")), "nor is anything left of it"


def test_no_rate_at_which_something_is_learnt(place, monkeypatch):
    monkeypatch.setattr(protocols, "SEARCHED", (1e30,))
    outcome = place.run("validate", lr="search", **LINE)
    assert outcome.code == 2 and outcome.err.splitlines()[-1].startswith("error: conv3 seed 0: loss is")
    assert not (place / "measured" / "results.csv").exists()


@pytest.mark.parametrize("arch, first", [("conv3", 0.0001), ("mobilenet_v2", 0.00025), ("alexnet", 0.00001)])
def test_the_rates_are_those_around_the_published_one(arch, first):
    settings = {**protocols.DELT, "lr": "search"}
    found = protocols.resolve(settings, arch, protocols.SetFacts(10, 10, 100, 32), 1)
    assert found.lr_search == pytest.approx([first * factor for factor in (1, 3, 10, 30, 100)])
    assert found.lr == pytest.approx(10 * first)


def test_the_rates_of_a_protocol_with_one_of_its_own_are_around_that():
    flags = {**dict.fromkeys(protocols.DELT), "lr": "search", "protocol": ["gvbsm", "delt"]}
    own, published = chosen_protocols(flags, "cifar100", 32).values()
    facts = protocols.SetFacts(100, 10, 1000, 32, "cifar100")
    found = protocols.resolve(own, "conv3", facts, 1)
    assert (found.optimizer, found.lr) == ("sgd", 0.1) and found.lr_search == (0.01, 0.03, 0.1, 0.3, 1.0)
    assert protocols.resolve(published, "conv3", facts, 1).lr_search == (0.0001, 0.0003, 0.001, 0.003, 0.01)


@pytest.mark.parametrize("value", ["searching", "-1", "nan", "inf"])
def test_what_is_no_rate_is_refused(place, value):
    refused(place, "validate", "--lr", value, lr=value)


def test_a_set_whose_labels_are_stored(place):
    """The labels are made once; the rate takes no part in them."""
    line = {**LINE, "protocol": "delt", "save_labels": place / "labels"}
    said = place.works("validate", lr="search", **line)
    assert said.count("soft labels in") == 1 and "takes" in said
