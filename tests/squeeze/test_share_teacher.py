"""A teacher and its card as a folder for the Hub; and stages take it from there."""

import json
from importlib import metadata

import pytest
import torch
import yaml
from safetensors.torch import save_file

from conftest import CLASSES, INPUT, MEAN, STD, snapshot
from helpers import tree
from utils.run.files import sha256

OPEN = ("--teacher-arch", "conv3", "--input-size", INPUT, "--mean", *MEAN, "--std", *STD)


def share(place, *words, output="hub", licence=("--licence", "mit")):
    return place.start("squeeze.share", "--output-dir", place / output, *licence, *words)


def front(card):
    """A card's YAML, and its text."""
    _, facts, text = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(facts), text


def refused(place, *words, told, **line):
    before = snapshot(place.root)
    outcome = share(place, *words, **line)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    assert all(str(text) in outcome.err for text in told), outcome.err
    assert snapshot(place.root) == before


def test_a_teacher_goes_there_and_back(place):
    order = place.reorder_teacher()
    assert share(place, "--teacher-path", place.teacher).code == 0
    assert tree(place / "hub") == ["README.md", "classes.txt", "share.json", "teacher.pth"]
    assert (place / "hub/teacher.pth").read_bytes() == place.teacher.read_bytes()
    assert (place / "hub/classes.txt").read_text().split() == order

    content = torch.load(place.teacher, weights_only=True)
    facts, text = front(place / "hub/README.md")
    assert facts["license"] == "mit" and facts["pipeline_tag"] == "image-classification"
    [entry] = facts["model-index"][0]["results"]
    assert entry["metrics"][0]["value"] == content["top1"] and {"type", "name"} <= set(entry["dataset"])
    learnt = [name for name in content["model"] if "running" not in name and "num_batches" not in name]
    parameters = sum(content["model"][name].numel() for name in learnt)
    for row in (
        f"| SHA-256 of the file | {sha256(place.teacher)} |",
        "| architecture | conv3 |",
        f"| parameters | {parameters} |",
        f"| input size in pixels | {INPUT} |",
        "| mean of pixels from 0 to 1 | 0.4, 0.5, 0.6 |",
        "| their standard deviation | 0.3, 0.25, 0.2 |",
        f"| top-1 in percent | {content['top1']} |",
        "| epochs | 4 |",
        "| lr | 0.02 |",
        f"| version of torch | {metadata.version('torch')} |",
    ):
        assert row in text
    assert "0 zebra, 1 ant, 2 moth." in text and str(place.root) not in text

    place.works("recover", teacher_path=place / "hub/teacher.pth")
    manifest = json.loads((place.syn / "manifest.json").read_text())
    assert manifest["teachers"] == [{"arch": "conv3", "sha256": sha256(place.teacher)}]


def test_the_library_of_the_hub_reads_the_card(place):
    hub = pytest.importorskip("huggingface_hub")
    words = ("--name", "My teacher", "--source", "My moths")
    assert share(place, "--teacher-path", place.teacher, *words).code == 0
    [result] = hub.ModelCard.load(place / "hub/README.md").data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("my-moths", "My moths")
    top1 = torch.load(place.teacher, weights_only=True)["top1"]
    assert (result.metric_type, result.metric_value, result.task_type) == ("accuracy", top1, "image-classification")


def test_the_same_command_gives_the_same_bytes_and_does_nothing_twice(place):
    words = "--teacher-path", place.teacher
    assert share(place, *words).code == share(place, *words, output="again").code == 0
    before, again = snapshot(place / "hub"), snapshot(place / "again")
    assert {name: entry[0] for name, entry in before.items()} == {name: entry[0] for name, entry in again.items()}
    assert "complete" in share(place, *words).out and snapshot(place / "hub") == before
    refused(place, *words, "--name", "other", told=[place / "hub", "README.md", "--overwrite"])
    assert share(place, *words, "--name", "other", "--overwrite").code == 0
    assert "# other\n" in (place / "hub/README.md").read_text()


def test_a_checkpoint_of_others_and_the_flags_that_it_needs(place):
    """Bare weights: the card has the flags with which the stages take them."""
    weights = torch.load(place.teacher, weights_only=True)["model"]
    save_file(weights, place / "bare.safetensors")
    (place / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    words = "--teacher-path", place / "bare.safetensors"
    refused(place, *words, told=["does not name its architecture", "--teacher-arch"])
    assert share(place, *words, *OPEN, "--classes", place / "names.txt").code == 0
    facts, text = front(place / "hub/README.md")
    assert "model-index" not in facts and "read by safetensors" in text
    line = text.split("```bash\n")[1].split("\n```")[0].replace("FOLDER", str(place / "hub")).split()
    given = dict(zip(("train_dir", "output_dir", "ranking_file"), (place.train, place / "chosen", place / "r.csv")))
    flags = line[line.index("--teacher-path") :]
    outcome = place.start("ranking.__main__", *place.command("ranking", teacher_path=None, **given), *flags)
    assert outcome.code == 0, outcome.err
    assert (place / "chosen/manifest.json").is_file() and "--classes" in flags


def test_weights_that_name_no_classes(place):
    torch.save(torch.load(place.teacher, weights_only=True)["model"], place / "bare.pth")
    assert share(place, "--teacher-path", place / "bare.pth", *OPEN).code == 0
    assert "classes.txt" not in tree(place / "hub")
    assert "sorted order" in front(place / "hub/README.md")[1]


def test_another_known_data_set_than_the_checkpoint_names(place):
    torch.save({**torch.load(place.teacher, weights_only=True), "dataset": "tinyimagenet"}, place.teacher)
    words = "--teacher-path", place.teacher, "--source"
    refused(place, *words, "cifar10", told=["--source cifar10", "tinyimagenet", "leave it out"])
    assert share(place, *words, "Tiny ImageNet").code == 0
    assert "| data | Tiny ImageNet |" in front(place / "hub/README.md")[1]


def test_what_is_refused(place):
    words = "--teacher-path", place.teacher
    refused(place, told=["--teacher-path is needed"])
    refused(place, *words, licence=(), told=["--licence is needed", "trained on"])
    refused(place, "--teacher-path", place / "none.pth", told=[place / "none.pth", "no such checkpoint"])
    refused(place, *words, output="train", told=[place / "train", "not empty"])
    refused(place, *words, output=".", told=["mix with the input"])
