"""A set, its labels and results as a folder for the Hub; and validate takes it from there."""

import csv
import json
import shlex
import shutil
import statistics

import pytest
import yaml

from conftest import Place, images, snapshot
from helpers import gray, tree

SHARE = "validate.share.__main__"
SEEDS = 2


@pytest.fixture(scope="module")
def stage(stock, tmp_path_factory):
    """A recovered set and random images, measured alike; the set's labels, the two largest of three classes."""
    place = stock.copied(tmp_path_factory.mktemp("stage"))
    place.order = place.reorder_teacher()
    place.works("recover")
    place.works("ranking", criterion="random", ranking_file=None, output_dir=place / "random")
    place.works("validate", syn_dir=[place.syn, place / "random"], seeds=SEEDS)
    place.works("validate", syn_dir=place.syn, seeds=SEEDS, save_labels=place / "labels", top_k=2)
    outcome = share(place, *everything(place))
    assert outcome.code == 0, outcome.err
    return place


@pytest.fixture
def place(stage, tmp_path):
    """A copy to spoil."""
    shutil.copytree(stage.root, tmp_path, dirs_exist_ok=True)
    copied = Place(tmp_path)
    copied.order = stage.order
    return copied


def share(place, *words, output="hub", licence=("--licence", "cc-by-4.0")):
    return place.start(SHARE, *words, "--output-dir", place / output, *licence)


def everything(place):
    return "--syn-dir", place.syn, "--labels", place / "labels", "--results", place / "measured"


def front(card):
    """A card's YAML, and its text."""
    _, facts, text = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(facts), text


def rows(place, output="measured"):
    with open(place / output / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def table(text, heading):
    """The rows of the table below a heading of a card, without their deviations."""
    lines = text.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [dict(zip(cells[0], row)) for row in cells[2:]]


def test_what_is_in_the_folder(stage):
    found = tree(stage / "hub")
    for name in images(stage.syn):
        assert (stage / "hub/train" / name).read_bytes() == (stage.syn / name).read_bytes()
    for name in tree(stage / "labels"):
        if (stage / "labels" / name).is_file():
            assert (stage / "hub/labels" / name).read_bytes() == (stage / "labels" / name).read_bytes()
    results = [name for name in found if name.startswith("results/")]
    assert len(results) == 2 + 1, "the set's alone, with stored labels and without, and their table"
    files = [name for name in found if (stage / "hub" / name).is_file() and "/" not in name]
    assert files == ["README.md", "contact_sheet.png", "share.json"]
    assert not [name for name in found if "/." in f"/{name}"]


def test_no_file_says_where_it_was_made(stage):
    for path in (stage / "hub").rglob("*"):
        if path.is_file():
            assert str(stage.root).encode() not in path.read_bytes(), path


def test_the_same_command_gives_the_same_bytes_and_does_nothing_twice(place):
    assert share(place, *everything(place), output="again").code == 0
    before, again = snapshot(place / "hub"), snapshot(place / "again")
    assert {name: entry[0] for name, entry in before.items()} == {name: entry[0] for name, entry in again.items()}
    assert "complete" in share(place, *everything(place)).out and snapshot(place / "hub") == before


def test_what_was_lost_is_written_again(place):
    before = {name: entry[0] for name, entry in snapshot(place / "hub").items()}
    (place / "hub/train/ant").joinpath(next(iter(images(place.syn))).split("/")[1]).unlink()
    assert share(place, *everything(place)).code == 0
    assert {name: entry[0] for name, entry in snapshot(place / "hub").items()} == before


def test_what_people_keep_in_the_folder_stays(place):
    """A repository of git, and a card that was edited."""
    own = ["hub/.git/HEAD", "hub/notes.md", "hub/train/ant/.note", "hub/README.md"]
    for name in own:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("my own")
    refused(place, *everything(place), told=[place / "hub/README.md", "changed", "--overwrite"])
    assert share(place, *everything(place), "--overwrite").code == 0
    assert "my own" not in (place / "hub/README.md").read_text()

    assert share(place, "--syn-dir", place / "random", "--overwrite").code == 0
    assert [(place / name).read_text() == "my own" for name in own] == [True, True, True, False]
    assert images(place / "hub/train") == images(place / "random")
    assert not (place / "hub/labels").exists() and not (place / "hub/results").exists()


def test_the_yaml_of_the_card(stage):
    facts, _ = front(stage / "hub/README.md")
    assert facts["license"] == "cc-by-4.0" and facts["task_categories"] == ["image-classification"]
    assert facts["size_categories"] == ["n<1K"] and "iterations=8" in facts["pretty_name"]
    [config] = facts["configs"]
    names = config["features"][1]["dtype"]["class_label"]["names"]
    assert [names[str(label)] for label in range(3)] == stage.order != sorted(stage.order)


def test_the_card_is_one_for_the_library_of_the_hub(stage):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(stage / "hub/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]


def test_the_text_of_the_card(stage):
    _, text = front(stage / "hub/README.md")
    manifest = json.loads((stage.syn / "manifest.json").read_text())
    assert manifest["teachers"][0]["sha256"] in text and "cc-by-4.0" in text and "contact_sheet.png" in text
    assert "| round\\_iterations | 2 |" in text
    assert ", ".join(f"{label} {name}" for label, name in enumerate(stage.order)) in text
    assert "the 2 largest of 3 classes" in text


def test_the_measured_table(stage):
    _, text = front(stage / "hub/README.md")
    found = {row["protocol"]: row for row in table(text, "Measured")}
    measured = rows(stage)
    tops = {
        (row["method"] == "random", row["protocol"]): [
            float(other["top1"])
            for other in measured
            if (other["method"], other["protocol"]) == (row["method"], row["protocol"])
        ]
        for row in measured
    }
    assert set(found) == {"delt epochs=2", "delt epochs=2 stored top-2"}
    for protocol, row in found.items():
        own = tops[False, protocol]
        assert row["top-1"] == f"{statistics.fmean(own):.2f} ± {statistics.stdev(own):.2f}"
        assert row["seeds"] == "0, 1" and row["student"] == row["teacher"] == "conv3"
    own, random = tops[False, "delt epochs=2"], tops[True, "delt epochs=2"]
    margin = statistics.fmean(own) - statistics.fmean(random)
    assert found["delt epochs=2"]["over random"].split(" ± ")[0] == f"{margin:+.2f}"
    assert found["delt epochs=2 stored top-2"]["over random"] == "not measured"


@pytest.mark.parametrize("part", ["hub", "hub/train"])
def test_validate_takes_the_folder_and_its_labels(place, part):
    line = dict(syn_dir=place / part, seeds=SEEDS, output_dir=place / "back")
    place.works("validate", **line)
    place.works("validate", **line, load_labels=place / "hub/labels", teacher_path=None, student_arch="conv3")
    again = {(row["protocol"], row["seed"]): row for row in rows(place, "back")}
    first = {(row["protocol"], row["seed"]): row for row in rows(place) if row["method"] != "random"}
    assert set(again) == set(first)
    for key, row in again.items():
        assert [row[name] for name in ("method", "top1", "top5", "settings")] == [
            first[key][name] for name in ("method", "top1", "top5", "settings")
        ]


def test_the_command_on_the_card_trains_on_the_labels(place):
    """It has the flags that the labels were made with."""
    shutil.rmtree(place / "labels")
    line = front(place / "hub/README.md")[1].split("```bash\n")[1].split("\n```")[0]
    line = line.replace("FOLDER", str(place / "hub")).replace("REAL_TEST_IMAGES", str(place.val))
    words = shlex.split(line.removeprefix("python -m validate"))
    machine = ("--device", "cpu", "--precision", "fp32", "--compile", "off", "--output-dir", place / "back")
    outcome = place.start("validate.__main__", *words, *machine)
    assert outcome.code == 0, outcome.err
    first = [row["top1"] for row in rows(place) if row["protocol"].endswith("top-2")]
    assert [row["top1"] for row in rows(place, "back")] == first and len(first) == SEEDS


def test_the_card_has_the_flags_of_its_labels_and_not_of_others(place):
    """Of two stores of one set each has its own students, and none where nobody learnt from it."""
    line = dict(syn_dir=place.syn, seeds=SEEDS, save_labels=place / "tiled", protocol="mosaic", tiles=2)
    place.works("validate", **line)
    whole = "--syn-dir", place.syn, "--labels", place / "tiled"
    for results, said in (("measured", "FOLDER/labels --protocol mosaic --epochs 2 --tiles 2 "), ("few", "labels\n")):
        if results == "few":
            place.works("validate", syn_dir=place.syn, seeds=1, output_dir=place / "few", save_labels=place / "others")
        outcome = share(place, *whole, "--results", place / results, output=results + "_hub")
        assert outcome.code == 0, outcome.err
        text = front(place / f"{results}_hub" / "README.md")[1]
        assert said in text.split("```bash\n")[1].split("```")[0]
        assert "| tiles | 2 |" in text.split("## Labels")[1] and "| min\\_scale | 0.5 |" in text


def test_what_the_real_data_are_called(place):
    """No folder stands for the name, as it does in results."""
    assert "data set" not in front(place / "hub/README.md")[1].split("## Use")[0]
    assert share(place, "--syn-dir", place.syn, "--source", "Moths | 2", output="named").code == 0
    facts, text = front(place / "named/README.md")
    assert facts["pretty_name"].startswith("Moths | 2, delt") and "source data, Moths \\| 2, as" in text


def test_another_known_data_set_than_the_files_name(place):
    """Its licence would be another one's. The same one may be spelled as people do."""
    path = place.syn / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset": "cifar10"}))
    line = "--syn-dir", place.syn, "--source"
    refused(place, *line, "CIFAR-100", output="new", told=["--source CIFAR-100", "cifar10", "leave it out"])
    for number, (words, name) in enumerate([(line[:2], "cifar10"), ((*line, "CIFAR-10"), "CIFAR-10")]):
        assert share(place, *words, output=f"new{number}").code == 0
        assert f"source data, {name}, as given" in front(place / f"new{number}/README.md")[1]


def test_the_report_reads_the_results_in_the_folder(place):
    outcome = place.start("validate.report.comparison", place / "hub", "--output-dir", place / "report")
    assert outcome.code == 0, outcome.err
    with open(place / "report/comparison.csv", newline="") as file:
        found = list(csv.DictReader(file))
    size = sum(len(content) for content in images(place.syn).values())
    assert len(found) == 2 and {row["image_bytes"] for row in found} == {str(size)}


def test_a_selection_of_real_images(place):
    """A random one was made without the teacher, who has another order of classes."""
    words = "--syn-dir", place / "random", "--results", place / "measured"
    refused(place, *words, output="real", told=[place / "measured", "--teacher-path"])
    outcome = share(place, *words, "--teacher-path", place.teacher, output="real")
    assert outcome.code == 0, outcome.err
    facts, text = front(place / "real/README.md")
    assert "synthetic" not in facts["tags"] and "criterion | random" in text and len(table(text, "Measured")) == 1
    assert images(place / "real/train") == images(place / "random")
    assert "validate: random, conv3" in place.works("validate", syn_dir=place / "real", output_dir=place / "back")


def test_classes_by_position_and_their_labels(place):
    """Folders with names of their own are shared as they are, in the teacher's order."""
    for label, name in enumerate(place.order):
        (place.syn / name).rename(place.syn / f"new{label}")
    (place.syn / "manifest.json").unlink()
    line = dict(syn_dir=place.syn, method="mine", classes_by="position", epochs=2, output_dir=place / "by_position")
    place.works("validate", save_labels=place / "own", **line)
    outcome = share(
        place, "--syn-dir", place.syn, "--labels", place / "own", "--results", place / "by_position", output="out"
    )
    assert outcome.code == 0, outcome.err
    facts, _ = front(place / "out/README.md")
    names = facts["configs"][0]["features"][1]["dtype"]["class_label"]["names"]
    assert names == {"0": "new0", "1": "new1", "2": "new2"}
    line |= dict(syn_dir=place / "out", load_labels=place / "out/labels", teacher_path=None, student_arch="conv3")
    assert "seed 0 is complete" in place.works("validate", **line)


# --- what is refused ---------------------------------------------------------------------------------------------


def refused(place, *words, told, **line):
    before = snapshot(place.root)
    outcome = share(place, *words, **line)
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1, outcome.err
    for text in told:
        assert str(text) in outcome.err
    assert snapshot(place.root) == before


@pytest.mark.parametrize("licence", [(), ("--licence", " ")])
def test_the_licence_is_needed(place, licence):
    refused(place, *everything(place), output="new", licence=licence, told=["--licence is needed", "cc-by-4.0"])


def test_another_licence_is_another_folder_unless_it_is_to_be_overwritten(place):
    other = ("--licence", "for research only, https://example.org/terms")
    refused(place, *everything(place), licence=other, told=[place / "hub", "licence", "--overwrite"])
    assert share(place, *everything(place), "--overwrite", licence=other).code == 0
    facts, text = front(place / "hub/README.md")
    assert facts["license"] == "other" and facts["license_name"] == "for-research-only"
    assert facts["license_link"] == "https://example.org/terms" and "for research only" in text


def test_labels_and_results_of_other_images(place):
    words = "--syn-dir", place / "random"
    refused(place, *words, "--labels", place / "labels", output="new", told=[place / "labels", "other images"])
    shutil.rmtree(place / "random")
    shutil.copytree(place.init, place / "random")
    refused(place, *words, "--results", place / "measured", output="new", told=[place / "measured", "no result"])


def test_an_order_of_classes_that_does_not_fit(place):
    (place / "two.txt").write_text("ant\nmoth\n")
    refused(place, "--syn-dir", place.syn, "--classes", place / "two.txt", output="new", told=["two.txt", "2"])


def test_labels_that_are_none_or_damaged(place):
    words = "--syn-dir", place.syn, "--labels"
    refused(place, *words, place / "train", output="new", told=[place / "train", "holds no labels"])
    shard = next((place / "labels/seed1").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    refused(place, *words, place / "labels", output="new", told=[shard, "damaged"])


def test_a_set_that_has_changed_or_is_not_complete(place):
    path = place.syn / next(iter(images(place.syn)))
    gray(path, 3)
    refused(place, "--syn-dir", place.syn, output="new", told=[path.relative_to(place.syn), "changed"])
    record = json.loads((place.syn / "manifest.json").read_text())
    (place.syn / "manifest.json").write_text(json.dumps({**record, "finished": False}))
    refused(place, "--syn-dir", place.syn, output="new", told=[place.syn, "not complete"])


@pytest.mark.parametrize("name", ["ant/more/x.png", "__ant/x.png", "ant/x.qoi"])
def test_what_load_dataset_would_leave_out(place, name):
    path = place.init / name
    path.parent.mkdir(parents=True, exist_ok=True)
    gray(path.with_suffix(".png"), 3)
    if path.suffix != ".png":
        path.with_suffix(".png").rename(path)
    refused(place, "--syn-dir", place.init, output="new", told=[name])


def test_the_output_is_none_of_the_inputs(place):
    refused(place, *everything(place), output="syn/hub", told=[place.syn])
    refused(place, *everything(place), output="train", told=["not empty"])
