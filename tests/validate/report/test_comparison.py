"""The comparison: seconds, bytes and tables of small results, worked out by hand."""

import csv
import hashlib
import json
import math

import pytest
from compared_run import HARD, NAMES, SOFT, images, make_run, measured, recovered, rows_of, table

from conftest import Place
from result_files import DIGEST, write_manifest
from utils.data.manifest import Manifest
from validate.report import collect, comparison, origins, tables


@pytest.fixture
def run(tmp_path):
    make_run(tmp_path / "run")
    return tmp_path / "run"


def test_seconds_are_those_of_all_that_made_the_set(run):
    rows = table(run)
    row = rows["delt", "delt"]
    assert [row[f"{stage}_seconds"] for stage in comparison.STAGES] == [12, 7.5, 60] and row["seconds"] == 79.5
    row = rows["random", "delt"]
    assert row["seconds"] == row["ranking_seconds"] == 0 and math.isnan(row["recover_seconds"])
    assert rows["delt", "delt"]["iterations"] == 200 and rows["random", "delt"].isna()["iterations"]


def test_a_set_from_noise_has_no_ranking_and_one_of_a_recovered_start_has_its_own(run):
    recovered(run / "noise", None, 7)
    recovered(run / "again", run / "delt", 3)
    measured(run, "noise", "delt", (50.0,))
    measured(run, "again", "delt", (50.0,))
    rows = table(run)
    assert rows["noise", "delt"]["seconds"] == 7 and math.isnan(rows["noise", "delt"]["ranking_seconds"])
    row = rows["again", "delt"]
    assert [row[f"{stage}_seconds"] for stage in comparison.STAGES] == [12, 7.5, 63]


def test_without_what_a_set_started_from_nobody_knows_its_seconds(run):
    (run / "medium").rename(run / "elsewhere")
    row = table(run)["delt", "delt"]
    assert math.isnan(row["seconds"]) and math.isnan(row["ranking_seconds"])
    assert (row["recover_seconds"], row["statistics_seconds"]) == (60, 7.5)


def test_of_images_that_were_made_anew_since_nothing_is_said_but_what_was_measured(run):
    measured(run, "delt", "cda", (50.0,), set=Manifest.of(run / "delt").digest)
    row = table(run)["delt", "cda"]
    assert (row["iterations"], row["seconds"], row["similarity"]) == (200, 79.5, pytest.approx(0.6))
    record = json.loads((run / "delt" / "manifest.json").read_text())
    record["images"][NAMES[0]]["sha256"] = hashlib.sha256(b"made anew").hexdigest()
    write_manifest(run / "delt", **record)
    row = table(run)["delt", "cda"]
    entry = next(one for one in collect.read([run]) if one.protocol == "cda")
    assert row["top1"] == 50.0 and origins.image_sets([entry]) == []
    for name in ("iterations", "seconds", "recover_seconds", "image_bytes", "similarity"):
        assert row.isna()[name], name


def test_similarity_of_the_images_before_is_not_that_of_those_made_anew(run):
    """As many images, in the same place."""
    path = run / "diversity" / "delt" / "diversity.csv"
    before, head = Manifest.of(run / "delt").digest, path.read_text().splitlines()[0]
    rows = [f"delt,{label},2,0.5,conv3,{run / 'delt'},{before}" for label in ("ant", "moth")]
    path.write_text("\n".join([f"{head},set", *rows, ""]))
    measured(run, "delt", "delt", (50.0,), set=before)
    assert table(run)["delt", "delt"]["similarity"] == 0.5
    record = json.loads((run / "delt" / "manifest.json").read_text())
    record["images"][NAMES[0]]["sha256"] = hashlib.sha256(b"made anew").hexdigest()
    write_manifest(run / "delt", **record)
    measured(run, "delt", "delt", (50.0,), set=Manifest.of(run / "delt").digest)
    assert math.isnan(table(run)["delt", "delt"]["similarity"])


def test_bytes_of_images_and_labels(run):
    rows = table(run)
    row = rows["delt", "delt"]
    assert row["image_bytes"] == images(run / "delt") > 0
    # 30 epochs of 4 images, 2 classes of 2 bytes.
    assert (row["label_bytes"], row["labels"]) == (30 * 4 * 2 * 2, "computed")
    assert (rows["delt", "hard"]["label_bytes"], rows["delt", "hard"]["labels"]) == (0, "none")


def stored(run, number, size, **changes):
    """Labels of delt's set as --save-labels leaves them, or others; their bytes."""
    settings = {"images": f"2 of {run / 'delt'}", "teachers": ["resnet18"], "epochs": 30, "temperature": 20.0}
    settings |= {"input_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "kept": 2, "seed": number, **changes}
    index = {"settings": settings, "finished": True, "stem": "cifar", "num_classes": 2, "classes": ["ant", "moth"]}
    shard = {"file": "00000.safetensors", "epochs": [0, settings["epochs"]], "sha256": DIGEST}
    index |= {"archs": ["resnet18"], "versions": {}, "shards": [shard]}
    folder = run / "labels" / f"seed{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "00000.safetensors").write_bytes(bytes(size))
    (folder / "index.json").write_text(json.dumps(index))
    return size + (folder / "index.json").stat().st_size


def test_labels_on_disk_are_measured(run):
    sizes = [stored(run, 0, 1000), stored(run, 1, 1200)]
    settings = {**SOFT, "temperature": 20.0, "stored_labels": 2, "bn_epochs": 5}  # the last one says nothing of labels
    measured(run, "delt", "stored", (44.0, 46.0), settings, arguments={"save_labels": str(run / "labels")})
    row = table(run)["delt", "stored"]
    assert (row["label_bytes"], row["labels"]) == (sum(sizes) / 2, "stored")
    text = comparison.note(comparison.table(collect.read([run])))
    assert comparison.STORED in text and comparison.COMPUTED in text
    others = [{"images": "x"}, {"teachers": ["conv3"]}, {"kept": 1}, {"epochs": 2}, {"temperature": 4.0}]
    for changes in (*others, {"tiles": 2}, {"teacher_statistics": "batch", "accumulate": 1}, {"seed": 7}):
        stored(run, 0, 1000, **changes)
        assert table(run)["delt", "stored"]["label_bytes"] == sizes[1], "those of the other seed"
    (run / "labels" / "seed1" / "index.json").unlink()
    row = table(run)["delt", "stored"]
    assert (row["label_bytes"], row["labels"]) == (30 * 4 * 2 * 2, "computed")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"teachers": ["b" * 64]}, ("teacher resnet18", f"teacher {'b' * 8}")),
        ({"test_images": "c" * 64}, ("test images cifar10", f"test images {'c' * 8}")),
        ({"precision": "bf16"}, ("precision fp32", "precision bf16")),
    ],
    ids=str,
)
def test_what_was_measured_in_other_circumstances_has_a_table_of_its_own(run, changed, words):
    """It may be on top of that, and of no other; the flat table says so behind each name."""
    measured(run, "cda", "delt", (90.0,), {**SOFT, **changed}, syn_dir=str(run / "delt"))
    found = collect.read([run])
    tops = {group.title: group.rows[0][0].text for group in comparison.groups(comparison.table(found))}
    begin = "cifar10, IPC 2, teacher resnet18, student resnet18"
    usual, other = ([title for title in tops if title.startswith(f"{begin} ({word})")] for word in words)
    assert [tops[title] for title in usual + other] == ["delt", "cda"] and len(tops) == 2
    assert {f"delt ({words[0]})", f"cda ({words[1]})"} < set(tables.results(found)["method"])


def test_images_that_were_replaced_stand_below_and_are_called_so(run):
    measured(run, "delt", "delt", (90.0, 92.0), {**SOFT, "images": "x"}, name="before", set=DIGEST)
    [group] = comparison.groups(comparison.table(collect.read([run])))
    assert [row[0].text for row in group.rows] == ["delt", "random", "delt (earlier images)"]


def test_similarity_is_that_of_the_same_folder_whatever_it_is_called(run):
    """Two sets of one method, of which one was measured, and by another name."""
    images(run / "again")
    measured(run, "delt", "delt", (50.0,), name="again", syn_dir=str(run / "again"))
    path = run / "diversity" / "delt" / "diversity.csv"
    path.write_text(path.read_text().replace("delt,", "syn,"))
    frame = comparison.table(collect.read([run]))
    found = dict(zip(frame["syn_dir"], frame["similarity"]))
    assert found[str(run / "delt")] == pytest.approx(0.6) and math.isnan(found[str(run / "again")])


UNEVEN = (("ant", 2, 0.2), ("bee", 1, 0.3), ("moth", 1, 0.7))  # class, images, similarity


def test_similarity_is_the_mean_over_classes(run):
    rows = table(run)
    assert rows["delt", "delt"]["similarity"] == pytest.approx(0.6)
    assert math.isnan(rows["random", "delt"]["similarity"])
    classes = [f"delt,{name},{images},{value},conv3,{run / 'delt'}" for name, images, value in UNEVEN]
    path = run / "diversity" / "delt" / "diversity.csv"
    path.write_text("\n".join(["method,class,images,similarity,extractor,syn_dir", *classes, ""]))
    assert table(run)["delt", "delt"]["similarity"] == pytest.approx(0.4), "each class counts once"


def by_networks(run, *networks):
    """Write what each network, by its digest, says of a set's images."""
    head = "method,class,images,similarity,extractor,syn_dir,set,extractor_sha256"
    for method, network in zip(("delt", "random"), networks):
        lines = [f"{method},{label},2,0.5,conv3,{run / method},,{network}" for label in ("ant", "moth")]
        (run / "diversity" / method).mkdir(parents=True, exist_ok=True)
        (run / "diversity" / method / "diversity.csv").write_text("\n".join([head, *lines, ""]))
    return [table(run)[method, "delt"]["similarity"] for method in ("delt", "random")]


def test_similarities_in_the_features_of_different_networks_are_not_compared(run, capsys):
    assert by_networks(run, "a" * 64, "a" * 64) == [0.5, 0.5]
    assert by_networks(run, "a" * 64, "") == [0.5, 0.5], "an earlier version did not say it"
    capsys.readouterr()
    assert all(map(math.isnan, by_networks(run, "a" * 64, "b" * 64)))
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("left out: similarities of cifar10, IPC 2, ") and "conv3 aaaaaaaa, conv3 bbbbbbbb" in line


def test_a_set_that_is_gone(tmp_path):
    measured(tmp_path, "delt", "delt", (50.0,), syn_dir="/nowhere/syn")
    row = table(tmp_path)["delt", "delt"]
    assert row[["seconds", "image_bytes", "label_bytes", "iterations", "similarity"]].isna().all()


def test_for_people(run):
    outcome = Place(run).start("validate.report.comparison", run)
    assert outcome.code == 0, outcome.err
    lines = (run / "report" / "comparison.md").read_text().splitlines()
    assert lines[0] == "**cifar10, IPC 2, teacher resnet18, student resnet18, 2 seeds, other numbers in brackets**"
    size = f"{images(run / 'delt') / 1000:.1f} kB"
    assert lines[2] == (
        "| set | delt over random | delt | hard over random | hard | seconds | ranking | statistics | recover | "
        "images | labels, delt | similarity | iterations |"
    )
    assert lines[4] == (
        "| delt | +4.50 ± 1.89 | 46.00 ± 2.00 (3) | -2.00 | 30.00 (1) | 80 | 12 | 8 | 60 | "
        f"{size} | 480 B | 0.600 | 200 |"
    )
    assert lines[5] == f"| random |  | 41.50 ± 2.12 |  | 32.00 ± 1.41 | 0 | 0 |  |  | {size} | 480 B |  |  |"
    assert "46.00 ± 2.00" in outcome.out and "comparison.csv" in outcome.out
    with open(run / "report" / "comparison.csv", newline="") as file:
        rows = {(row["method"], row["protocol"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4 and rows["delt", "delt"]["margin"] == "4.5" and rows["delt", "hard"]["margin_std"] == ""
    assert rows["random", "delt"]["recover_seconds"] == "" and rows["delt", "delt"]["recover_seconds"] == "60"


def test_the_best_set_stands_on_top_and_names_are_escaped(run):
    measured(run, "a|b", "delt", (60.0,), syn_dir=str(run / "delt"))
    [group] = comparison.groups(comparison.table(collect.read([run])))
    assert [row[0].text for row in group.rows] == ["a|b", "delt", "random"]
    assert "| a\\|b |" in comparison.markdown(comparison.table(collect.read([run])))
    assert [cell.value for cell in group.rows[2]][2] == 41.5, "to sort by"


@pytest.mark.parametrize("size, text", [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2_000_000, "2.0 MB")])
def test_bytes_for_people(size, text):
    assert comparison._bytes(size).text == text


def test_a_row_is_of_one_set_whatever_the_files_are_called(tmp_path):
    """Two sets of one method, each under two protocols."""
    values = {("a", "delt"): 50.0, ("b", "delt"): 60.0, ("a", "hard"): 30.0, ("b", "hard"): 40.0}
    order = [("a", "delt"), ("b", "delt"), ("b", "hard"), ("a", "hard")]
    for number, (name, protocol) in enumerate(order):
        settings = SOFT if protocol == "delt" else HARD
        place = dict(syn_dir=str(tmp_path / name), name=f"{number}")
        measured(tmp_path, "delt", protocol, (values[name, protocol],), settings, **place)
    [group] = comparison.groups(comparison.table(collect.read([tmp_path])))
    found = [[cell.text for cell in row] for row in group.rows]
    assert [(row[0], row[2], row[4]) for row in found] == [
        (f"delt ({tmp_path / 'b'})", "60.00", "40.00"),
        (f"delt ({tmp_path / 'a'})", "50.00", "30.00"),
    ]


@pytest.mark.parametrize(
    "one, two, words",
    [
        ({"input_size": 8}, {"input_size": 16}, ("8 px", "16 px")),
        ({"stem": "small"}, {"stem": "imagenet"}, ("stem small", "stem imagenet")),
        ({"mean": [0.5] * 3}, {"mean": [0.4] * 3}, ("mean [0.5, 0.5, 0.5]", "mean [0.4, 0.4, 0.4]")),
        ({"std of teacher 2": 1}, {"std of teacher 2": 2}, ("std of teacher 2: 1", "std of teacher 2: 2")),
        ({}, {"sync_bn": True}, (None, "sync_bn")),
    ],
    ids=str,
)
def test_a_row_is_of_one_way_to_measure_and_says_which(tmp_path, one, two, words):
    """A set under one protocol both ways, and under a second one in one of them."""
    place = dict(syn_dir=str(tmp_path / "syn"))
    measured(tmp_path, "delt", "delt", (50.0,), {**SOFT, **two}, **place, name="1")
    measured(tmp_path, "delt", "delt", (40.0,), {**SOFT, **one}, **place, name="2")
    measured(tmp_path, "delt", "hard", (30.0,), {**HARD, **one}, **place, name="3")
    found = collect.read([tmp_path])
    ways = list(comparison.groups(comparison.table(found)))
    titles = (f"student resnet18 ({word}), 1 seed" if word else "student resnet18, 1 seed" for word in words)
    rows = {way.title.split(", ", 3)[3]: [[cell.text for cell in row] for row in way.rows] for way in ways}
    assert {title: [[text for text in row if text][:3] for row in rows[title]] for title in rows} == {
        title: [["delt", *top1]] for title, top1 in zip(titles, (["40.00", "30.00"], ["50.00"]), strict=True)
    }
    first, second = (f"delt ({word})" if word else "delt" for word in words)
    results = tables.results(found)
    shown = results[results["source"] == "measured"]
    assert set(zip(shown["method"], shown["top1"])) == {(first, 30.0), (first, 40.0), (second, 50.0)}


def test_a_part_of_a_set_counts_as_what_it_is(run):
    """validate --ipc 1: bytes of the first image of each class, and no similarity of the whole set."""
    measured(run, "delt", "delt", (50.0,), ipc=1, arguments={"ipc": 1}, name="part")
    row = rows_of(run)["delt", "delt", 1]
    first = [run / "delt" / name for name in NAMES if name.endswith("000_x.png")]
    assert row["image_bytes"] == sum(path.stat().st_size for path in first)
    assert row["label_bytes"] == 30 * 2 * 2 * 2 and math.isnan(row["similarity"])
    assert rows_of(run)["delt", "delt", 2]["similarity"] == pytest.approx(0.6)
