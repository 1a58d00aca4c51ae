"""validate as its users meet it: command lines in, results out."""

import csv
import hashlib
import json
import re
import shutil
import statistics

import pytest
import torch
from PIL import Image

from conftest import CLASSES, COLOURS, INPUT, MEAN, STD, draw, images, snapshot
from refusals import refused
from result_files import COLUMNS, result, write_manifest

QUICK = dict(epochs=1, labels="hard", student_arch="conv3")


def table(place, folder="measured"):
    with open(place / folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# --- what one run leaves -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bugs(stock, tmp_path_factory):
    """Two seeds, trained so fast that the best epoch is not the last."""
    place = stock.copied(tmp_path_factory.mktemp("chain") / "bugs")
    place.lines["validate"].update(seeds=2, seed=5, epochs=4, lr=0.01, method="mine")
    place.said = place.works("validate")
    return place


def test_a_row_for_each_seed(bugs):
    assert (bugs / "measured" / "results.csv").read_text().splitlines()[0] == COLUMNS
    rows = table(bugs)
    assert [row["seed"] for row in rows] == ["5", "6"]
    for row in rows:
        assert (row["dataset"], row["method"], row["ipc"], row["epochs"]) == ("bugs", "mine", "4", "4")
        assert (row["teacher"], row["student"], row["syn_dir"]) == ("conv3", "conv3", str(bugs.init))
        assert 0 <= float(row["top1"]) <= float(row["best_top1"]) <= 100
        assert float(row["top5"]) == 100  # of three classes
        assert float(row["seconds"]) >= 0
    assert rows[0]["settings"] == rows[1]["settings"] and re.fullmatch("[0-9a-f]{16}", rows[0]["settings"])


def test_the_json_holds_the_curves_and_their_summary(bugs):
    found, rows = result(bugs), table(bugs)
    assert [entry["seed"] for entry in found["seeds"]] == [5, 6]
    for entry, row in zip(found["seeds"], rows):
        assert [point["epoch"] for point in entry["curve"]] == [1, 2, 3, 4]
        assert all(point["loss"] > 0 for point in entry["curve"])
        # Three evaluations unless told otherwise, as even over four epochs as can be.
        assert [point["epoch"] for point in entry["curve"] if "top1" in point] == [1, 3, 4]
        measured = [point["top1"] for point in entry["curve"] if "top1" in point]
        assert (row["top1"], row["best_top1"]) == (f"{measured[-1]:.2f}", f"{max(measured):.2f}")
        # 18 test images: a rate is a count of them.
        assert all(rate * 18 / 100 == pytest.approx(round(rate * 18 / 100)) for rate in measured)
    top1 = [entry["curve"][-1]["top1"] for entry in found["seeds"]]
    assert found["top1_mean"] == pytest.approx(statistics.mean(top1), abs=1e-3)
    assert found["top1_std"] == pytest.approx(statistics.stdev(top1), abs=1e-3)
    assert f"{statistics.mean(top1):.2f}" in bugs.said
    assert found["images"] == 12 and all(entry["processes"] == 1 for entry in found["seeds"])
    assert found["arguments"]["temperature"] is None and found["settings"]["temperature"] == 20


def test_the_same_command_again_trains_nobody(bugs):
    before = snapshot(bugs.root)
    assert "complete" in bugs.works("validate")
    assert snapshot(bugs.root) == before


def test_the_same_command_in_another_folder_gives_the_same_curves(bugs, place):
    place.lines["validate"].update(bugs.lines["validate"], syn_dir=place.init, val_dir=place.val)
    place.lines["validate"].update(teacher_path=place.teacher, output_dir=place / "measured")
    place.works("validate")
    assert [entry["curve"] for entry in result(place)["seeds"]] == [entry["curve"] for entry in result(bugs)["seeds"]]


def test_a_set_called_after_its_recipe_says_what_was_changed(place):
    """Also where earlier versions have measured it by the name alone: nothing is measured anew."""
    line = dict(QUICK, method="delt")
    place.works("validate", **line)  # these say nothing of how they were made
    [(before, found)] = [(path.name, json.loads(path.read_text())) for path in (place / "measured/results").iterdir()]
    assert (found["method"], table(place)[0]["method"]) == ("delt", "delt")
    write_manifest(place.init, method="delt iterations=7", arguments={"method": "delt"})
    assert "delt iterations=7, conv3, delt" in (said := place.works("validate", **line)) and "is complete" in said
    assert [row["method"] for row in table(place)] == ["delt iterations=7"]
    [path] = (place / "measured" / "results").iterdir()
    assert path.name == before and json.loads(path.read_text()) == {**found, "method": "delt iterations=7"}
    place.works("validate", **{**line, "method": "mine", "output_dir": place / "named"})
    assert table(place, "named")[0]["method"] == "mine", "a name of one's own"


def test_a_flag_that_says_what_the_protocol_has_anyway_measures_nothing_anew(place):
    place.works("validate", **QUICK)
    before = snapshot(place.root)
    assert "is complete" in place.works("validate", **QUICK, batch_size=result(place)["settings"]["batch_size"])
    assert snapshot(place.root) == before
    place.works("validate", **QUICK, batch_size=5)
    assert [row["protocol"] for row in table(place)] == [
        "delt epochs=1 labels=hard",
        "delt epochs=1 batch_size=5 labels=hard",
    ]


def test_the_rate_of_another_optimiser_is_not_kept_without_a_word(place):
    line = dict(QUICK, optimizer="sgd")
    assert "--optimizer sgd: delt's are for adamw, so give --lr and --weight-decay too" in place.works(
        "validate", **line
    )
    assert "adamw" not in place.works("validate", **line, lr=0.1, weight_decay=0.0)
    assert "are for" not in place.works("validate", **{**line, "optimizer": "adamw"})


def test_help_names_every_flag_of_the_design(stock):
    flags = """--dataset --val-dir --teacher-arch --teacher-path --ipc --seed --batch-size --workers --device
        --precision --compile --stem --syn-dir --student-arch --protocol --epochs --lr --temperature --loss --mix
        --rand-augment --min-scale --max-scale --seeds --labels"""
    outcome = stock.run("validate", help=True)
    assert outcome.code == 0
    assert set(flags.split()) <= set(re.findall(r"--[a-z-]+", outcome.out))


# --- class k is class k by name ----------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_validate_counts_the_class_that_the_teacher_calls_so(place, labels):
    place.reorder_teacher()
    plain = dict(rand_augment="none", mix="none", min_scale=0.8)
    place.works("validate", syn_dir=place.train, epochs=10, batch_size=7, labels=labels, **plain)
    # Mistaken for its neighbour, each class would be right in the few test images alone that mislead.
    assert float(table(place)[0]["top1"]) > 60


def bare(place):
    """The teacher's weights, without a word about them."""
    torch.save(torch.load(place.teacher, weights_only=True)["model"], place / "bare.pth")
    return dict(teacher_path=place / "bare.pth", teacher_arch="conv3", epochs=1, output_dir=place / "bare")


def test_flags_fill_what_weights_without_facts_leave_open(place):
    place.works("validate", epochs=1)
    place.works("validate", **bare(place), input_size=INPUT, mean=MEAN, std=STD)
    assert result(place, "bare")["seeds"][0]["curve"] == result(place)["seeds"][0]["curve"]


def test_what_was_assumed_of_weights_without_facts_is_said(place):
    for name, colour in COLOURS.items():
        draw(place.init / name, colour, 4, name, INPUT)
    out = place.works("validate", **bare(place))
    [line] = [line for line in out.splitlines() if "; assumed " in line]
    assert str(place / "bare.pth") in line and f"{INPUT}" in line and "ImageNet" in line and "0.485" in line
    settings = result(place, "bare")["settings"]
    assert (settings["input_size"], settings["mean"]) == (INPUT, [0.485, 0.456, 0.406])


# --- sets, students, protocols -----------------------------------------------------------------------------------


def test_hard_labels_need_no_teacher_and_students_can_be_many(place):
    archs = ["conv3", "mobilenet_v2"]
    place.works("validate", labels="hard", teacher_path=None, student_arch=archs, epochs=1, input_size=32)
    assert [(row["student"], row["seed"], row["teacher"]) for row in table(place)] == [(a, "0", "none") for a in archs]
    assert len(list((place / "measured" / "results").glob("*.json"))) == 2


def test_without_a_teacher_sets_are_shown_at_the_size_that_they_were_made_for(place):
    """Test images and those of a set of nobody's may have another size."""
    place.works("recover", iterations=4)
    for path in [*place.val.glob("*/*.png"), *place.init.glob("*/*.png")]:
        Image.open(path).resize((40, 40)).save(path)
    line = dict(QUICK, teacher_path=None)
    said = place.works("validate", **line, syn_dir=[place.init, place.syn])
    assert f"assumed {INPUT} (from {place.syn / 'manifest.json'}); --input-size" in said
    assert said.count(f"epochs of batch 10, {INPUT} px, ") == 2
    said = place.works("validate", **line, output_dir=place / "nobody's")
    assert f"assumed 40 (from the images in {place.val}); --input-size" in said
    assert result(place, "nobody's")["settings"]["input_size"] == 40
    said = place.works("validate", **line, syn_dir=place.syn, input_size=16, output_dir=place / "16")
    assert result(place, "16")["settings"]["input_size"] == 16 and "assumed" not in said


def test_sets_that_were_made_for_other_sizes_need_one_that_is_said(place):
    for name, size in ("small", 16), ("large", 24):
        place.works("recover", iterations=2, syn_dir=place / name)
        path = place / name / "manifest.json"
        made = json.loads(path.read_text())
        made["settings"]["input_size"] = size
        path.write_text(json.dumps(made))
    line = dict(QUICK, teacher_path=None, syn_dir=[place / "small", place / "large"])
    refused(place, "validate", place / "large", "24 pixels", place / "small", 16, "--input-size", **line)
    place.works("validate", **line, input_size=16)


def test_several_sets_under_several_protocols_in_one_call(place):
    sets = {"medium": place.init, "first": place.train}
    line = dict(syn_dir=list(sets.values()), method=list(sets), ipc=4, protocol=["delt", "hard"], epochs=1)
    place.works("validate", **line)
    rows = table(place)
    assert {(row["method"], row["protocol"], row["ipc"], row["syn_dir"]) for row in rows} == {
        (method, f"{protocol} epochs=1", "4", str(folder))
        for protocol in ("delt", "hard")
        for method, folder in sets.items()
    }
    assert len(rows) == len({row["settings"] for row in rows}) == 4
    assert len(list((place / "measured" / "results").glob("*.json"))) == 4
    before = snapshot(place.root)
    place.works("validate", **line)
    assert snapshot(place.root) == before


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_the_whole_training_set_can_be_the_set_and_mix_as_is_liked(place, mix):
    place.works("validate", syn_dir=place.train, mix=mix, epochs=1, method="whole set")
    [row] = table(place)
    assert (row["method"], row["ipc"]) == ("whole set", "7")
    # Softer labels make a smaller loss: at T = 4 (mixup) it is more than ten times that at T = 20.
    loss = result(place)["seeds"][0]["curve"][0]["loss"]
    assert (loss > 0.006) == (mix == "mixup")


def test_ipc_takes_the_first_images(place):
    for name in CLASSES:
        (place / "two" / name).mkdir(parents=True)
        for file in sorted((place.init / name).iterdir())[:2]:
            shutil.copy(file, place / "two" / name)
    place.works("validate", ipc=2, output_dir=place / "first", **QUICK)
    place.works("validate", syn_dir=place / "two", output_dir=place / "alone", **QUICK)
    place.works("validate", output_dir=place / "all", **QUICK)
    curves = {name: result(place, name)["seeds"][0]["curve"] for name in ("first", "alone", "all")}
    assert curves["first"] == curves["alone"] != curves["all"]
    assert table(place, "first")[0]["ipc"] == "2"


@pytest.mark.parametrize("manifest", [{"method": "delt iterations=8"}, {"images": {}}, None])
def test_a_set_is_called_as_its_manifest_says_or_as_its_folder(place, manifest):
    if manifest is not None:
        (place.init / "manifest.json").write_text(json.dumps(manifest))
    place.works("validate", **QUICK)
    assert [row["method"] for row in table(place)] == [(manifest or {}).get("method", "init")]
    place.works("validate", **QUICK, method="mine", output_dir=place / "given")
    assert [row["method"] for row in table(place, "given")] == ["mine"]


def test_the_manifest_that_recover_writes_names_the_method(place):
    place.works("recover", iterations=2)
    place.works("validate", syn_dir=place.syn, **QUICK)
    manifest = json.loads((place.syn / "manifest.json").read_text())
    assert table(place)[0]["method"] == manifest["method"] and manifest["method"].startswith("delt")


# --- once more ---------------------------------------------------------------------------------------------------


def test_more_seeds_later_add_their_rows_only(place):
    place.works("validate", **QUICK)
    first = (place / "measured" / "results.csv").read_text()
    place.works("validate", **QUICK, seeds=2)
    assert (place / "measured" / "results.csv").read_text().startswith(first)
    assert [row["seed"] for row in table(place)] == ["0", "1"]
    assert [entry["seed"] for entry in result(place)["seeds"]] == [0, 1]


def test_a_row_lost_between_two_files_comes_back(place):
    """Killed after the JSON and before the row, the same command again completes the table."""
    place.works("validate", **QUICK, seeds=2)
    results, whole = place / "measured" / "results.csv", table(place)
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))
    place.works("validate", **QUICK, seeds=2)
    assert table(place) == whole


def other_pixels(place):
    for name in CLASSES:
        draw(place.init / name, (128, 128, 128), 4, f"grey {name}")
    return {}


def other_test_pixels(place):
    draw(place.val / "ant", (128, 128, 128), 1, "grey")
    return {}


@pytest.mark.parametrize(
    "change",
    [
        other_pixels,
        other_test_pixels,
        lambda place: {"val_dir": place.train},
        lambda place: {"weight_average": 0.9},
        lambda place: {"optimizer": "sgd"},
        lambda place: {"lr_schedule": "cosine"},
    ],
    ids=["images", "test images", "test folder", "weight_average", "optimizer", "lr_schedule"],
)
def test_what_has_changed_is_measured_anew(place, change):
    """The same command on other pixels under the same names is another measurement."""
    place.works("validate", **QUICK)
    place.works("validate", **QUICK, **change(place))
    first, second = table(place)
    assert first["settings"] != second["settings"], "so that they are never averaged"


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["other bytes", "one more"])
def test_images_that_are_not_those_of_their_manifest_do_not_pass_for_them(place, change):
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in images(place.init).items()}
    write_manifest(place.init, settings={"criterion": "random"}, sha256=digests, finished=True)
    place.works("validate", epochs=1, seeds=1, method=None)
    first = place.init / next(iter(digests))
    if change == "other bytes":
        image = Image.open(first)
        image.putpixel((0, 0), (1, 2, 3))
        image.save(first)
    else:
        for name in CLASSES:
            draw(place.init / name, COLOURS[name], 5, "more")
        first = place.init / "ant" / "ant0.png"
    refused(place, "validate", f"{first.relative_to(place.init)} is not as manifest.json there says", epochs=1, seeds=1)
    (place.init / "manifest.json").unlink()
    place.works("validate", epochs=1, seeds=1, method=None, output_dir=place / "another")


def test_sets_of_as_many_images_are_measured_alike_however_their_classes_share_them(place):
    """12 images: four of each of three classes, or five, four and three."""
    shutil.copytree(place.init, place / "uneven")
    first, *_, last = sorted((place / "uneven").iterdir())
    moved = sorted(last.iterdir())[0]
    moved.rename(first / f"more_{moved.name}")
    place.works("validate", syn_dir=[place.init, place / "uneven"], method=["even", "uneven"], **QUICK)
    found = [json.loads(path.read_text()) for path in (place / "measured" / "results").iterdir()]
    assert {one["method"]: one["ipc"] for one in found} == {"even": 4, "uneven": 4}
    assert len({one["settings"]["batch_size"] for one in found}) == 1
    kept = {"ipc": 5, "short_classes": "keep"}
    write_manifest(place / "uneven", settings=kept)
    refused(
        place,
        "validate",
        "uneven",
        "counts as 5 images per class",
        "as 4",
        "one by one",
        syn_dir=[place.init, place / "uneven"],
        method=["a", "b"],
        **QUICK,
    )


def test_sets_of_different_size_are_not_compared(place):
    refused(place, "validate", "--ipc 4", "12", "21", syn_dir=[place.init, place.train], method=["a", "b"], epochs=1)


@pytest.mark.parametrize("line", [dict(protocol="hard"), dict(labels="hard"), dict(protocol=["delt", "hard"])])
@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_hard_labels_are_not_compared_with_a_teacher(place, line, loss):
    refused(place, "validate", "--loss", loss, "ce", **line, loss=loss)


def test_a_folder_is_not_compared_with_itself(place):
    for again in (place.init, f"{place.init}/", place.train / ".." / "init"):
        refused(place, "validate", "--syn-dir", "twice", syn_dir=[place.init, again], method=["a", "b"])


@pytest.mark.parametrize(
    "line, words",
    [
        (dict(weight_average=1), ["--weight-average", "0.99"]),
        (dict(lr_steps=[0.5, 1.5]), ["--lr-steps", "1.5"]),
        (dict(optimizer="adagrad"), ["--optimizer", "adamw", "sgd"]),
        (dict(loss="l1"), ["--loss", "kl", "mse", "ce"]),
        (dict(class_weight=-1), ["--class-weight"]),
        (dict(image_weights="some"), ["--image-weights", "on", "off"]),
        (dict(teacher_arch=["conv3", "conv3"]), ["--teacher-arch", "2"]),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_values_that_cannot_be(place, line, words):
    refused(place, "validate", *words, **line)
