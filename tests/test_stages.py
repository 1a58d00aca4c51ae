"""The four stages end to end, as their users meet them: command lines in, files out."""
import csv
import hashlib
import json
import re
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from conftest import CLASSES, COLOURS, INPUT, MEAN, PIXELS, ROOT, STD, Place, draw, images, snapshot
from helpers import CPU
from utils.checkpoints import load_teacher
from utils.evaluate import accuracy
from utils.images import ImageFolder
from utils.loader import TestImages

IPC = 4
RESULT_COLUMNS = "dataset,method,ipc,teacher,student,protocol,seed,top1,best_top1,top5,epochs,seconds,syn_dir"
TRAINING = dict(seeds=2, seed=5, epochs=4, lr=0.01)  # so fast that the best epoch is not the last
SRE2L = dict(init_dir=None, init="noise", batch_by="index", milestone=0, round_iterations=0)


# --- what the stages should compute, in the plainest way ---------------------------------------------------------

def logits(path, files, mean=MEAN, std=STD, whole=False):
    """What the conv3 in checkpoint `path` says of each image file: of its centre, or of the whole of a small one."""
    weights = torch.load(path, weights_only=True)["model"]
    batch = []
    for file in files:
        image = Image.open(file).convert("RGB")
        if min(image.size) != PIXELS and not whole:
            image = image.resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)
        left, top = (image.width - INPUT) // 2, (image.height - INPUT) // 2
        batch.append(np.asarray(image.crop((left, top, left + INPUT, top + INPUT))) / 255)
    x = torch.tensor((np.stack(batch) - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    for d in range(3):
        x = F.conv2d(x, weights[f"layers.conv.{d}.weight"], weights[f"layers.conv.{d}.bias"], padding=1)
        x = F.batch_norm(x, *(weights[f"layers.norm.{d}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))
        x = F.avg_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), weights["classifier.weight"], weights["classifier.bias"])


def medium(rows, ipc):
    """Counted from 1 in ascending order: mid, mid+1, mid-1, mid+2, ... with mid = ceil(n / 2)."""
    ascending = sorted(rows, key=lambda row: (float(row["score"]), row["img_path"]))
    mid = -(-len(rows) // 2)
    places = [mid, mid + 1, mid - 1, mid + 2, mid - 2]
    return [ascending[k - 1]["img_path"] for k in places][:ipc]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rows_of(path, name):
    return [row for row in table(path) if row["class"] == name]


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def start(path):
    """A starting image as recover sees it: INPUT pixels."""
    return np.asarray(Image.open(path).convert("RGB").resize((INPUT, INPUT), Image.Resampling.BILINEAR)).astype(float)


def result(place, folder="measured"):
    """The one JSON of a validation."""
    [path] = (place / folder / "results").glob("*.json")
    return json.loads(path.read_text())


# --- one run of everything ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def chain(stock, tmp_path_factory):
    """All four stages as processes of their own, each on what the one before left."""
    place = Place(tmp_path_factory.mktemp("chain") / "bugs")
    for name in ("train", "val"):
        shutil.copytree(stock / name, place / name)
    place.lines["squeeze"].update(output=place.teacher)
    place.lines["ranking"].update(output_dir=place.init)
    place.lines["validate"].update(syn_dir=place.syn, **TRAINING)
    place.said = {}
    for stage in place.lines:
        done = place.spawn(stage)
        assert done.code == 0, done.err
        place.said[stage] = done.out
    return place


def test_squeeze_writes_weights_and_every_fact_about_them(chain):
    checkpoint = torch.load(chain.teacher, weights_only=True)
    facts = {name: checkpoint[name] for name in ("arch", "stem", "num_classes", "classes", "input_size", "mean", "std",
                                                 "epochs")}
    assert facts == {"arch": "conv3", "stem": "cifar", "num_classes": 3, "classes": list(CLASSES), "input_size": INPUT,
                     "mean": list(MEAN), "std": list(STD), "epochs": 4}


def test_the_top1_that_squeeze_prints_is_that_of_its_weights(chain):
    files = sorted(chain.val.glob("*/*.png"))
    guesses = logits(chain.teacher, files).argmax(1).tolist()
    top1 = 100 * sum(CLASSES[guess] == file.parent.name for guess, file in zip(guesses, files)) / len(files)
    assert 40 < top1 < 100  # the teacher learned something, and the test set tells rates apart
    assert f"top-1 {top1:.2f} %" in chain.said["squeeze"]
    assert torch.load(chain.teacher, weights_only=True)["top1"] == pytest.approx(top1, abs=0.01)


def test_the_ranking_file_lists_every_image_by_class_then_by_score(chain):
    assert (chain / "ranking.csv").read_text().splitlines()[0] == "img_path,class,score"
    rows = table(chain / "ranking.csv")
    assert sorted(row["img_path"] for row in rows) == [f"{name}/{name}{k}.png" for name in CLASSES for k in range(7)]
    assert all(row["img_path"].split("/")[0] == row["class"] for row in rows)
    assert rows == sorted(rows, key=lambda row: (row["class"], -float(row["score"])))


def test_a_score_is_the_teachers_probability_of_the_images_class(chain):
    rows = table(chain / "ranking.csv")
    probabilities = logits(chain.teacher, [chain.train / row["img_path"] for row in rows]).softmax(1)
    expected = [probabilities[k, CLASSES.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05


def test_the_selection_is_the_medium_images_as_they_were(chain):
    for name in CLASSES:
        chosen = medium(rows_of(chain / "ranking.csv", name), IPC)
        copies = sorted((chain.init / name).iterdir())
        assert [copy.name[:4] for copy in copies] == ["000_", "001_", "002_", "003_"]
        assert [copy.read_bytes() for copy in copies] == [(chain.train / path).read_bytes() for path in chosen]


def test_the_synthetic_set_has_the_form_of_the_selection(chain):
    made = images(chain.syn)
    assert [name.partition("_")[0] for name in made] == [f"{name}/{rank:03d}" for name in CLASSES for rank in range(IPC)]
    for name in made:
        with Image.open(chain.syn / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (INPUT, INPUT))
    listed = torchvision.datasets.ImageFolder(chain.syn)
    assert listed.classes == list(CLASSES)
    assert listed.targets == [label for label in range(3) for _ in range(IPC)]


def test_late_images_stay_closer_to_their_start(chain):
    """Group 0 has 8 iterations at the full rate, group 3 the last two, at a small one."""
    change = [np.abs(pixels(chain.syn / made) - start(chain.init / old)).mean()
              for made, old in zip(images(chain.syn), images(chain.init))]
    by_rank = np.reshape(change, (3, IPC)).mean(0)
    assert by_rank[0] > by_rank[1] > by_rank[2] > by_rank[3] > 0.1
    assert by_rank[0] > 4 * by_rank[3]


def test_the_manifest_says_how_the_set_was_made(chain):
    manifest = json.loads((chain.syn / "manifest.json").read_text())
    arguments = manifest["arguments"]
    assert (arguments["iterations"], arguments["round_iterations"], arguments["batch_size"]) == (8, 2, 8)
    # ... and those that nobody gave, as section 5 of the paper's settings has them.
    assert (arguments["lr"], arguments["r_bn"], arguments["jitter"], arguments["min_crop"]) == (0.25, 0.01, 0, 0.08)
    assert (arguments["curriculum"], arguments["milestone"], arguments["init"]) == ("cosine", 1, "images")
    assert (arguments["seed"], arguments["first_bn_multiplier"], arguments["batch_by"]) == (0, 10, "class")
    assert manifest["teacher_sha256"] == hashlib.sha256(chain.teacher.read_bytes()).hexdigest()
    for module in (torch, torchvision, np):
        assert manifest["versions"][module.__name__] == module.__version__.partition("+")[0]
    assert manifest["seconds"] > 0 and manifest["peak_memory_mb"] > 10
    assert {name: entry["round"] for name, entry in manifest["images"].items()} \
        == {name: rank % IPC for rank, name in enumerate(images(chain.syn))}


def test_the_contact_sheet_is_a_picture(chain):
    with Image.open(chain.syn / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.format == "PNG" and min(sheet.size) > 300
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_validate_adds_a_row_for_each_seed(chain):
    assert (chain / "measured" / "results.csv").read_text().splitlines()[0] == RESULT_COLUMNS
    rows = table(chain / "measured" / "results.csv")
    assert [row["seed"] for row in rows] == ["5", "6"]
    for row in rows:
        assert (row["dataset"], row["method"], row["ipc"], row["teacher"], row["student"], row["epochs"], row["syn_dir"]) \
            == ("bugs", "delt", "4", "conv3", "conv3", "4", str(chain.syn))
        assert 0 <= float(row["top1"]) <= float(row["best_top1"]) <= 100
        assert float(row["top5"]) == 100  # of three classes
        assert float(row["seconds"]) >= 0


def test_the_json_holds_the_curves_and_their_summary(chain):
    found, rows = result(chain), table(chain / "measured" / "results.csv")
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
    assert f"{statistics.mean(top1):.2f}" in chain.said["validate"]
    assert found["arguments"]["temperature"] is None and found["settings"]["temperature"] == 20


def test_the_same_commands_in_another_folder_give_the_same_bytes(chain, place):
    shutil.rmtree(place.init)
    place.lines["ranking"].update(output_dir=place.init)
    place.lines["validate"].update(syn_dir=place.syn, **TRAINING)
    place.works("squeeze", output=place.teacher, overwrite=True)
    for stage in ("ranking", "recover", "validate"):
        place.works(stage)
    old, new = (torch.load(path, weights_only=True)["model"] for path in (chain.teacher, place.teacher))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert (place / "ranking.csv").read_bytes() == (chain / "ranking.csv").read_bytes()
    assert images(place.init) == images(chain.init)
    assert images(place.syn) == images(chain.syn)
    assert [entry["curve"] for entry in result(place)["seeds"]] == [entry["curve"] for entry in result(chain)["seeds"]]


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_the_same_command_again_does_nothing_anew(chain, stage):
    before = snapshot(chain.root)
    assert re.search("already|complete|from", chain.works(stage))
    assert snapshot(chain.root) == before


def test_another_seed_gives_another_result(chain, place):
    for name in ("init", "train"):
        shutil.rmtree(place / name)
        shutil.copytree(chain / name, place / name)
    shutil.copy(chain.teacher, place.teacher)
    place.works("recover", seed=1)
    assert images(place.syn).keys() == images(chain.syn).keys()
    assert images(place.syn) != images(chain.syn)
    place.works("squeeze", seed=1)
    old, new = (torch.load(path, weights_only=True)["model"] for path in (chain.teacher, place / "squeezed.pth"))
    assert any(not torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_help_names_every_flag_of_the_design(stock, stage):
    shared = "--dataset --seed --batch-size --workers --device --precision --compile"
    own = {"squeeze": "--train-dir --val-dir --arch --output --stem",
           "ranking": "--train-dir --teacher-arch --teacher-path --output-dir --ranking-file --criterion --ipc",
           "recover": "--init-dir --syn-dir --iterations --round-iterations --lr --r-bn --first-bn-multiplier --jitter "
                      "--curriculum --milestone --min-crop --init --batch-by --image-format --ipc",
           "validate": "--syn-dir --val-dir --student-arch --epochs --lr --temperature --mix --rand-augment --min-scale "
                       "--max-scale --seeds --labels --ipc --teacher-arch --teacher-path"}[stage]
    outcome = stock.run(stage, help=True)
    assert outcome.code == 0
    assert set(f"{shared} {own}".split()) <= set(re.findall(r"--[a-z-]+", outcome.out))


# --- class k is class k by name ----------------------------------------------------------------------------------

@pytest.fixture
def reordered(place):
    """The teacher as it would be had it been trained on the classes in another order, none in its alphabetical place."""
    content = torch.load(place.teacher, weights_only=True)
    order = [2, 0, 1]
    for name in ("classifier.weight", "classifier.bias"):
        content["model"][name] = content["model"][name][order]
    content["classes"] = [CLASSES[k] for k in order]
    torch.save(content, place.teacher)
    place.classes = content["classes"]
    return place


def test_ranking_looks_at_the_class_that_the_teacher_calls_so(reordered):
    reordered.works("ranking")
    rows = table(reordered / "ranking.csv")
    probabilities = logits(reordered.teacher, [reordered.train / row["img_path"] for row in rows]).softmax(1)
    expected = [probabilities[k, reordered.classes.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)
    assert statistics.mean(expected) > 0.4  # as it could not be of another class


@pytest.mark.parametrize("start", ["images", "noise"])
def test_recover_draws_what_the_teacher_calls_the_folder(reordered, start):
    lines = {**SRE2L, "ipc": 2} if start == "noise" else {"round_iterations": 0}
    reordered.works("recover", iterations=30, r_bn=0, **lines)
    files = sorted(reordered.syn.glob("*/*.png"))
    assert len(files) == (6 if start == "noise" else 12)
    probabilities = logits(reordered.teacher, files, whole=True).softmax(1)
    for file, row in zip(files, probabilities):
        assert row[reordered.classes.index(file.parent.name)] > 0.7


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_validate_counts_the_class_that_the_teacher_calls_so(reordered, labels):
    reordered.works("validate", syn_dir=reordered.train, epochs=10, batch_size=7, labels=labels, rand_augment="none", mix="none",
                    min_scale=0.8)
    # Mistaken for its neighbour, each class would be right in the few test images alone that mislead.
    assert float(table(reordered / "measured" / "results.csv")[0]["top1"]) > 60


# --- resume and parallel -----------------------------------------------------------------------------------------

SMALL_UNITS = dict(iterations=4, round_iterations=2, ipc=2, batch_size=2)  # one unit a class


@pytest.fixture(scope="module")
def unbroken(stock, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("unbroken") / "place")
    shutil.copytree(stock.root, place.root)
    place.works("recover", **SMALL_UNITS)
    return place


def test_recover_makes_anew_what_is_lost_or_damaged_and_nothing_else(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    lost, damaged = sorted((place.syn / "ant").iterdir())[0], sorted((place.syn / "moth").iterdir())[1]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    kept = snapshot(place.syn / "zebra")
    place.works("recover", **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert snapshot(place.syn / "zebra") == kept
    assert json.loads((place.syn / "manifest.json").read_text())["images"] \
        == json.loads((unbroken.syn / "manifest.json").read_text())["images"]


def test_a_run_that_was_killed_goes_on_with_what_is_finished(unbroken, place, monkeypatch):
    from recover import units
    save = units.save_image

    def dies_at_the_fourth_image(path, image):
        if path.parent.name == "moth" and path.name.startswith("001"):
            raise KeyboardInterrupt
        save(path, image)

    monkeypatch.setattr(units, "save_image", dies_at_the_fourth_image)
    assert place.run("recover", **SMALL_UNITS).code == 130
    assert len(images(place.syn)) == 3 and not (place.syn / "contact_sheet.png").exists()
    monkeypatch.undo()
    kept = snapshot(place.syn / "ant")
    place.works("recover", **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert snapshot(place.syn / "ant") == kept


def test_squeeze_keeps_the_network_of_the_best_epoch(place):
    """Of those that were measured; the last of them where several are as good."""
    place.works("squeeze", epochs=6, evaluations=6, lr=0.5)
    best, last = (torch.load(place / name, weights_only=True) for name in ("squeezed_best.pth", "squeezed.pth"))
    assert best["top1"] >= last["top1"] and best["settings"] == last["settings"] and best["arch"] == "conv3"
    teacher = load_teacher(None, place / "squeezed_best.pth")
    top1, _ = accuracy(teacher.model, TestImages(ImageFolder(place.val, "--val-dir"), INPUT), CPU, teacher.mean, teacher.std)
    assert round(top1, 2) == best["top1"]


def test_squeeze_leaves_a_file_alone_that_is_called_as_its_best_would_be(place):
    (place / "squeezed_best.pth").write_bytes(place.teacher.read_bytes())
    outcome = place.run("squeeze", epochs=1)
    assert outcome.code == 2 and "squeezed_best.pth holds another run" in outcome.err
    assert (place / "squeezed_best.pth").read_bytes() == place.teacher.read_bytes() and not (place / "squeezed.pth").exists()


def test_two_ranks_make_together_what_one_process_makes(unbroken, place):
    place.works("recover", {"RANK": "0", "WORLD_SIZE": "2"}, **SMALL_UNITS)
    assert {name.split("/")[0] for name in images(place.syn)} == {"ant", "zebra"}
    place.works("recover", {"RANK": "1", "WORLD_SIZE": "2"}, **SMALL_UNITS)
    assert images(place.syn) == images(unbroken.syn)
    assert (place.syn / "contact_sheet.png").exists()
    assert json.loads((place.syn / "manifest.json").read_text())["images"].keys() == images(place.syn).keys()


def test_a_finished_set_stays_an_image_folder_when_the_command_is_given_again(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    place.works("recover", **SMALL_UNITS)
    assert torchvision.datasets.ImageFolder(place.syn).classes == list(CLASSES)


def test_overwrite_replaces_another_run(unbroken, place):
    shutil.copytree(unbroken.syn, place.syn)
    place.works("recover", **{**SMALL_UNITS, "ipc": 1}, overwrite=True)
    assert [name.partition("_")[0] for name in images(place.syn)] == [f"{name}/000" for name in CLASSES]
    assert json.loads((place.syn / "manifest.json").read_text())["arguments"]["ipc"] == 1


# --- ways of recovering ------------------------------------------------------------------------------------------

def test_sre2l_needs_no_starting_images(place):
    shutil.rmtree(place.init)
    place.works("recover", **SRE2L, ipc=2)
    assert [name.partition("_")[0] for name in images(place.syn)] == [f"{name}/{k:03d}" for name in CLASSES for k in range(2)]
    first, second = sorted((place.syn / "ant").iterdir())
    assert np.abs(pixels(first) - pixels(second)).mean() > 5


def test_without_rounds_every_image_is_optimised_from_the_start(place):
    place.works("recover", round_iterations=0, batch_by="index")
    assert {entry["round"] for entry in json.loads((place.syn / "manifest.json").read_text())["images"].values()} == {0}
    change = [np.abs(pixels(place.syn / made) - start(place.init / old)).mean()
              for made, old in zip(images(place.syn), images(place.init))]
    assert min(change) > max(change) / 4  # with rounds the last ones change by less than a tenth


def test_without_a_learning_rate_the_images_stay_what_they_were(place):
    for name, colour in COLOURS.items():
        shutil.rmtree(place.init / name)
        draw(place.init / name, colour, 2, name, INPUT)
    place.works("recover", lr=0)
    for old, made in zip(sorted(place.init.glob("*/*")), sorted(place.syn.glob("*/*"))):
        assert made.parent.name == old.parent.name
        assert np.array_equal(pixels(made), pixels(old))


def test_jpeg_on_request(place):
    place.works("recover", image_format="jpg")
    made = images(place.syn)
    assert len(made) == 12 and all(name.endswith(".jpg") for name in made)
    for name in made:
        with Image.open(place.syn / name) as image:
            assert (image.format, image.size) == ("JPEG", (INPUT, INPUT))
    place.works("validate", syn_dir=place.syn, epochs=1)


def test_the_sheet_goes_where_it_is_asked_for(place):
    place.works("recover", iterations=2, contact_sheet=place / "sheets" / "mine.png")
    assert Image.open(place / "sheets" / "mine.png").format == "PNG"
    assert not (place.syn / "contact_sheet.png").exists()


# --- ways of ranking ---------------------------------------------------------------------------------------------

@pytest.fixture
def ranked(place):
    """A ranking file as a user's own tool may write it: another order of rows, equal scores among them."""
    scores = [0.5, 0.25, 0.25, 1e-9, 0.75, 0.125, 1]
    rows = [f"{name}/{name}{k}.png,{name},{score}" for k, score in enumerate(scores) for name in reversed(CLASSES)]
    (place / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))
    return place


@pytest.mark.parametrize("criterion, chosen", [("medium", [2, 0, 1, 4]), ("top", [6, 4, 0, 1]), ("min", [3, 5, 1, 2])])
def test_a_ranking_file_that_is_there_is_used_without_a_teacher(ranked, criterion, chosen):
    before = (ranked / "ranking.csv").read_bytes()
    ranked.works("ranking", teacher_path=ranked / "nowhere.pth", criterion=criterion)
    for name in CLASSES:
        copies = sorted((ranked / "selected" / name).iterdir())
        assert [copy.read_bytes() for copy in copies] == [(ranked.train / name / f"{name}{k}.png").read_bytes() for k in chosen]
    assert (ranked / "ranking.csv").read_bytes() == before


def test_ranking_copies_again_what_is_lost_from_a_selection(ranked):
    ranked.works("ranking")
    whole = images(ranked / "selected")
    shutil.rmtree(ranked / "selected" / "ant")
    sorted((ranked / "selected" / "moth").iterdir())[1].write_bytes(b"damaged")
    ranked.works("ranking")
    assert images(ranked / "selected") == whole


def test_random_needs_no_scores_and_follows_its_seed(place):
    sets = {}
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        place.works("ranking", teacher_path=None, ranking_file=None, criterion="random", seed=seed, output_dir=place / folder)
        sets[folder] = images(place / folder)
    assert sets["a"] == sets["b"] != sets["c"]
    drawn = set()
    for name in CLASSES:
        originals = {path.read_bytes(): path.stem.removeprefix(name) for path in (place.train / name).iterdir()}
        chosen = [originals[data] for path, data in sets["a"].items() if path.startswith(name)]
        assert len(chosen) == len(set(chosen)) == 4
        drawn.add(tuple(chosen))
    assert len(drawn) > 1  # each class has a draw of its own


def test_class_names_are_text_whatever_they_look_like(place):
    for old, new in zip(CLASSES, ("007", "NA", "1e3")):
        (place.train / old).rename(place.train / new)
    rows = [f"{path.parent.name}/{path.name},{path.parent.name},0.{k}" for k, path in enumerate(sorted(place.train.glob("*/*")))]
    (place / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))
    place.works("ranking", teacher_path=None)
    assert sorted(folder.name for folder in (place / "selected").iterdir() if folder.is_dir()) == ["007", "1e3", "NA"]


# --- ways of validating ------------------------------------------------------------------------------------------

def test_hard_labels_need_no_teacher_and_students_can_be_many(place):
    place.works("validate", labels="hard", teacher_path=None, student_arch=["conv3", "mobilenet_v2"], epochs=1, input_size=32,
                seeds=1)
    rows = table(place / "measured" / "results.csv")
    assert [(row["student"], row["seed"]) for row in rows] == [("conv3", "0"), ("mobilenet_v2", "0")]
    assert len(list((place / "measured" / "results").glob("*.json"))) == 2


def test_several_sets_under_several_protocols_in_one_call(place):
    line = dict(syn_dir=[place.init, place.train], method=["medium", "first"], ipc=4, protocol=["delt", "hard"], epochs=1)
    place.works("validate", **line)
    rows = table(place / "measured" / "results.csv")
    assert {(row["method"], row["protocol"], row["ipc"], row["syn_dir"]) for row in rows} \
        == {(method, f"{protocol} epochs=1", "4", str(folder)) for protocol in ("delt", "hard")
            for method, folder in (("medium", place.init), ("first", place.train))}
    assert len(rows) == len(list((place / "measured" / "results").glob("*.json"))) == 4
    before = snapshot(place.root)
    place.works("validate", **line)
    assert snapshot(place.root) == before


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_the_whole_training_set_can_be_the_set_and_mix_as_is_liked(place, mix):
    place.works("validate", syn_dir=place.train, mix=mix, epochs=1, method="whole set")
    [row] = table(place / "measured" / "results.csv")
    assert (row["method"], row["ipc"]) == ("whole set", "7")
    # Softer labels make a smaller loss: at T = 4 (mixup) it is more than ten times that at T = 20.
    loss = result(place)["seeds"][0]["curve"][0]["loss"]
    assert (loss > 0.006) == (mix == "mixup")


def test_ipc_takes_the_first_images(place):
    for name in CLASSES:
        (place / "two" / name).mkdir(parents=True)
        for file in sorted((place.init / name).iterdir())[:2]:
            shutil.copy(file, place / "two" / name)
    lines = dict(labels="hard", student_arch="conv3", epochs=1)
    place.works("validate", ipc=2, output_dir=place / "first", **lines)
    place.works("validate", syn_dir=place / "two", output_dir=place / "alone", **lines)
    place.works("validate", output_dir=place / "all", **lines)
    curves = {name: result(place, name)["seeds"][0]["curve"] for name in ("first", "alone", "all")}
    assert curves["first"] == curves["alone"] != curves["all"]
    assert table(place / "first" / "results.csv")[0]["ipc"] == "2"


def test_more_seeds_later_add_their_rows_only(place):
    place.works("validate", epochs=1)
    first = (place / "measured" / "results.csv").read_text()
    place.works("validate", epochs=1, seeds=2)
    assert (place / "measured" / "results.csv").read_text().startswith(first)
    assert [row["seed"] for row in table(place / "measured" / "results.csv")] == ["0", "1"]
    assert [entry["seed"] for entry in result(place)["seeds"]] == [0, 1]


def test_a_row_lost_between_two_files_comes_back(place):
    """Killed after the JSON and before the row, the same command again completes the table."""
    place.works("validate", epochs=1, seeds=2)
    results = place / "measured" / "results.csv"
    whole = table(results)
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-1]))
    place.works("validate", epochs=1, seeds=2)
    assert table(results) == whole


def test_validate_measures_anew_what_has_changed(place):
    """The same command on other pixels under the same names is another measurement."""
    lines = dict(epochs=1, labels="hard", student_arch="conv3")
    place.works("validate", **lines)
    for name in CLASSES:
        draw(place.init / name, (128, 128, 128), 4, f"grey {name}")
    place.works("validate", **lines)
    assert len(table(place / "measured" / "results.csv")) == 2


def test_validate_measures_anew_on_another_test_set(place):
    place.works("validate", epochs=1)
    place.works("validate", epochs=1, val_dir=place.train)
    assert len(table(place / "measured" / "results.csv")) == 2


# --- what others bring -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wrap", [
    lambda weights: weights,
    lambda weights: {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 3},
    lambda weights: {"model": {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}},
], ids=["bare", "state_dict", "compiled"])
def test_weights_without_facts_serve_and_what_was_assumed_is_said(place, wrap):
    bare = place / "bare.pth"
    torch.save(wrap(torch.load(place.teacher, weights_only=True)["model"]), bare)
    for name, colour in COLOURS.items():
        shutil.rmtree(place.train / name)
        draw(place.train / name, colour, 5, f"small {name}", INPUT)
    out = place.works("ranking", teacher_path=bare, teacher_arch="conv3")
    [line] = [line for line in out.splitlines() if "assumed" in line]
    assert str(bare) in line and f"{INPUT}" in line and "ImageNet" in line and "0.485" in line and "0.229" in line
    rows = table(place / "ranking.csv")
    probabilities = logits(place.teacher, [place.train / row["img_path"] for row in rows], (0.485, 0.456, 0.406),
                           (0.229, 0.224, 0.225)).softmax(1)
    expected = [probabilities[k, CLASSES.index(row["class"])].item() for k, row in enumerate(rows)]
    assert [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-5)


def test_flags_fill_what_bare_weights_leave_open(place):
    bare = place / "bare.pth"
    torch.save(torch.load(place.teacher, weights_only=True)["model"], bare)
    place.works("ranking")
    place.works("ranking", teacher_path=bare, teacher_arch="conv3", input_size=INPUT, mean=MEAN, std=STD,
                ranking_file=place / "other.csv", output_dir=None)
    assert (place / "other.csv").read_bytes() == (place / "ranking.csv").read_bytes()


def test_images_of_every_mode_and_shape_are_read_as_rgb(place):
    folder = place.train / "ant"
    colour = Image.open(folder / "ant0.png")
    colour.convert("L").save(folder / "gray.png")
    colour.convert("LA").save(folder / "gray_alpha.png")
    colour.convert("1").save(folder / "bits.png")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.gif")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.resize((24, PIXELS)).save(folder / "wide.JPEG")
    colour.resize((PIXELS, 30)).save(folder / "tall.bmp")
    Image.fromarray((np.asarray(colour.convert("L")).astype(np.uint16) * 257)).save(folder / "deep.png")
    (folder / "notes.txt").write_text("not an image, and not called one")
    place.works("squeeze", epochs=1)
    place.works("ranking", ipc=7)
    rows = {row["img_path"].split("/")[1]: float(row["score"]) for row in rows_of(place / "ranking.csv", "ant")}
    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".txt"]
    assert sorted(rows) == [file.name for file in files] and len(files) == 16
    # PIL clips 16-bit values instead of scaling them, so the 8-bit twin stands for it.
    twins = [folder / "gray.png" if file.name == "deep.png" else file for file in files]
    expected = logits(place.teacher, twins).softmax(1)[:, 0].tolist()
    assert [rows[file.name] for file in files] == pytest.approx(expected, abs=1e-5)


def test_a_small_set_has_its_own_size_and_the_stem_follows_from_the_size(place):
    place.works("squeeze", epochs=1, input_size=None)
    facts = torch.load(place / "squeezed.pth", weights_only=True)
    assert (facts["input_size"], facts["stem"]) == (PIXELS, "cifar")
    place.works("squeeze", epochs=1, input_size=65, arch="mobilenet_v2", output=place / "big.pth")
    assert torch.load(place / "big.pth", weights_only=True)["stem"] == "imagenet"


@pytest.mark.parametrize("changed", [dict(input_size=PIXELS), dict(stem="imagenet"), dict(mean=(0.1, 0.1, 0.1)),
                                     dict(std=(0.5, 0.5, 0.5))], ids=lambda changed: next(iter(changed)))
def test_a_teacher_of_other_settings_is_not_passed_off_as_the_one_asked_for(place, changed):
    place.works("squeeze", epochs=1)
    before = snapshot(place.root)
    outcome = place.run("squeeze", epochs=1, **changed)
    assert outcome.code == 2 and str(place / "squeezed.pth") in outcome.err and next(iter(changed)) in outcome.err
    assert snapshot(place.root) == before


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    columns = "dataset,method,ipc,teacher,student,protocol,seed,top1,best_top1,top5,epochs,seconds,syn_dir"
    (tmp_path / "results.csv").write_text(f"{columns}\na,delt,1,conv3,conv3,delt,0,50.0,50.0,90.0,1,1.0,syn\n")
    line = [sys.executable, "-m", "validate.summary", str(tmp_path)]
    whole = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert whole.returncode == 0 and "50.00" in whole.stdout
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as head does when it has its lines
    assert process.stderr.read() == b"" and process.wait() == 141
