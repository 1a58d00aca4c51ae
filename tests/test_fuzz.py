"""Files that nobody can vouch for: whatever they hold, they are read, or refused in one line."""
import copy
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import CLASSES, Place, snapshot
from helpers import gray, noise
from ranking import score
from utils.checkpoints import load_teacher
from utils.files import UserError
from utils.images import ImageFolder
from validate import results

fuzzed = settings(deadline=2000, max_examples=150, suppress_health_check=list(HealthCheck))

JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=12),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)


@st.composite
def altered(draw, value, replacement=JSON):
    """`value` with one of its parts, at whatever depth, replaced, removed or repeated."""
    value = copy.deepcopy(value)
    holder, key, part = None, None, value
    while isinstance(part, (dict, list)) and part and (holder is None or draw(st.integers(0, 3))):
        holder, key = part, draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        part = holder[key]
    if holder is None:
        return draw(replacement)
    if draw(st.booleans()):
        holder[key] = draw(replacement)
    else:
        del holder[key]
    return value


@st.composite
def damaged(draw, content):
    """`content`, bytes, with a cut, a change or something put in between."""
    place = draw(st.integers(0, len(content)))
    more = draw(st.binary(max_size=20))
    return draw(st.sampled_from([content[:place], content[:place] + more + content[place + len(more):],
                                 content[:place] + more + content[place:], more]))


def refused_or(read):
    """`read()`, or the one line in which it was refused."""
    try:
        return read()
    except UserError as error:
        return " ".join(str(error).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / "train"
    for name in CLASSES:
        for number in range(3):
            gray(root / name / f"{name}{number}.png", 10 * number)
    return ImageFolder(root, "--train-dir")


# --- ranking files ------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["ant/ant0.png", "../secret.png", "/etc/passwd", "ant/../../x.png", "moth", "ant", "1e999", "-inf", "0.5",
                         "NaN", "", '"', "\x00", "a,b", "é"]) | st.text(max_size=8)


@fuzzed
@given(st.lists(st.lists(WORDS, max_size=4), max_size=6), st.sampled_from(["img_path,class,score\n", "img_path,class\n", "", "\ufeff"]))
def test_ranking_files_of_any_words(folder, rows, head):
    path = folder.root.parent / "ranking.csv"
    path.write_text(head + "\n".join(",".join(row) for row in rows), encoding="utf-8", errors="replace")
    table = refused_or(lambda: score.read(path, folder))
    assert isinstance(table, str) or set(table["img_path"]) <= set(folder.paths), "nothing outside of the folder is named"


@fuzzed
@given(st.data())
def test_damaged_ranking_files(folder, data):
    path = folder.root.parent / "ranking.csv"
    rows = [f"{image},{image.split('/')[0]},0.{number}" for number, image in enumerate(folder.paths)]
    path.write_bytes(data.draw(damaged(("img_path,class,score\n" + "\n".join(rows) + "\n").encode())))
    refused_or(lambda: score.read(path, folder))


@pytest.mark.parametrize("name", ["../outside/x.png", "/etc/hostname", "ant/../../outside/x.png", "ant/../ant/ant0.png"])
def test_a_ranking_file_cannot_lead_out_of_the_folder(place, name):
    gray(place / "outside" / "x.png", 3)
    place.works("ranking")
    text = (place / "ranking.csv").read_text()
    (place / "ranking.csv").write_text(text.replace("ant/ant0.png", name, 1))
    outcome = place.run("ranking", output_dir=place / "other")
    assert outcome.code == 2 and name in outcome.err and "not in --train-dir" in outcome.err
    assert not (place / "other").exists()


# --- manifests ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(stock, tmp_path_factory):
    """A place with a finished synthesis, and one that was cut off after a unit."""
    place = Place(tmp_path_factory.mktemp("finished"))
    shutil.copytree(stock.root, place.root, dirs_exist_ok=True)
    place.works("recover", batch_size=4, iterations=2, round_iterations=1)
    return place


@settings(fuzzed, max_examples=40)
@given(st.data())
def test_a_manifest_of_anything(finished, data):
    """The stage goes on, or refuses; it writes nowhere but into its folder."""
    place, syn = finished, finished.syn
    content = json.loads((syn / "manifest.json").read_text())
    kept = (syn / "manifest.json").read_bytes()
    around = {path: state for path, state in snapshot(place.root).items() if not path.startswith("syn")}
    (syn / "manifest.json").write_text(json.dumps(data.draw(altered(content))))
    outcome = place.run("recover", batch_size=4, iterations=2, round_iterations=1)
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err
    assert {path: state for path, state in snapshot(place.root).items() if not path.startswith("syn")} == around
    (syn / "manifest.json").write_bytes(kept)
    place.works("recover", batch_size=4, iterations=2, round_iterations=1)


@settings(fuzzed, max_examples=60)
@given(st.data())
def test_unit_records_of_anything(finished, data):
    from recover.units import Store, Unit
    manifest = json.loads((finished.syn / "manifest.json").read_text())
    names = {(0, rank): name for rank, name in enumerate(sorted(manifest["images"])[:4])}
    store = Store(finished.syn, manifest["settings"], names, dict.fromkeys(names, 0), 0, False)
    unit = Unit(0, tuple(names))
    store.record_path(unit).parent.mkdir(exist_ok=True)
    record = {"unit": 0, "images": {name: manifest["images"][name] for name in names.values()}, "seconds": 1.0}
    store.record_path(unit).write_text(json.dumps(data.draw(altered(record))))
    try:
        assert refused_or(lambda: store.finished(unit)) in (True, False)
    finally:
        shutil.rmtree(store.record_path(unit).parent)


# --- checkpoints --------------------------------------------------------------------------------------------------

PLAIN = JSON | st.tuples(st.floats(), st.floats()) | st.just(torch.zeros(2)) | st.sampled_from(
    ["resnet18", "conv3", "timm/x", "cifar", "../x", 3, 14, 0, -1, [0.5, 0.5, 0.5], [0, 0, 0], ["a", "b", "c"], ["a", "a", "a"]])


@settings(fuzzed, max_examples=120)
@given(st.data())
def test_checkpoint_facts_of_anything(stock, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    content = torch.load(stock.teacher, weights_only=True)
    facts = {key: value for key, value in content.items() if key not in ("model", "settings", "versions")}
    torch.save({"model": content["model"], **data.draw(altered(facts, PLAIN))}, path)
    teacher = refused_or(lambda: load_teacher(None, path))
    if not isinstance(teacher, str):
        assert teacher.model(torch.zeros(1, 3, teacher.input_size, teacher.input_size)).shape == (1, 3)
        assert teacher.classes is None or len(set(teacher.classes)) == 3
        assert len(teacher.mean) == len(teacher.std) == 3 and min(teacher.std) > 0


@settings(fuzzed, max_examples=60)
@given(st.data())
def test_damaged_checkpoints(stock, tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / data.draw(st.sampled_from(["fuzzed.pth", "fuzzed.safetensors"]))
    path.write_bytes(data.draw(damaged(stock.teacher.read_bytes()[-3000:])))
    assert isinstance(refused_or(lambda: load_teacher(None, path)), str)


# --- label shards -------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def labelled(stock, tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("labelled"))
    shutil.copytree(stock.root, place.root, dirs_exist_ok=True)
    place.works("validate", save_labels=place / "labels", epochs=2)
    return place


@settings(fuzzed, max_examples=60)
@given(st.data())
def test_a_label_index_of_anything(labelled, data):
    path = labelled / "labels" / "seed0" / "index.json"
    good = path.read_text()
    try:
        path.write_text(json.dumps(data.draw(altered(json.loads(good)))))
        outcome = labelled.run("validate", load_labels=labelled / "labels", teacher_path=None, epochs=2, student_arch="conv3",
                               output_dir=labelled / "out", evaluations=1)
        assert outcome.code in (0, 2) and "Traceback" not in outcome.err
    finally:
        path.write_text(good)
        shutil.rmtree(labelled / "out", ignore_errors=True)


@settings(fuzzed, max_examples=30)
@given(st.data())
def test_damaged_label_shards(labelled, data):
    [path] = (labelled / "labels" / "seed0").glob("*.safetensors")
    good = path.read_bytes()
    try:
        path.write_bytes(bad := data.draw(damaged(good)))
        outcome = labelled.run("validate", load_labels=labelled / "labels", teacher_path=None, epochs=2, student_arch="conv3",
                               output_dir=labelled / "out", evaluations=1)
        assert outcome.code == (0 if bad == good else 2), "a shard is what its checksum says, or not used"
    finally:
        path.write_bytes(good)
        shutil.rmtree(labelled / "out", ignore_errors=True)


# --- results and image folders ------------------------------------------------------------------------------------

@fuzzed
@given(st.data())
def test_results_of_anything(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "results of anything"
    facts = {"method": "delt", "student": "conv3", "protocol": "delt", "dataset": "x", "ipc": 1, "teacher": "conv3", "epochs": 1,
             "syn_dir": "syn"}
    shutil.rmtree(root, ignore_errors=True)
    run = results.Run(root, {"a": 1}, facts)
    run.add(results.Result(0, 50.0, 50.0, 90.0, 1.0, [{"epoch": 1, "loss": 0.1, "top1": 50.0}]))
    path = data.draw(st.sampled_from([run.path, root / "results.csv"]))
    path.write_bytes(data.draw(damaged(path.read_bytes())) if path.suffix == ".csv" or data.draw(st.booleans()) else
                     json.dumps(data.draw(altered(json.loads(path.read_text())))).encode())
    refused_or(lambda: results.Run(root, {"a": 1}, facts))


NAMES = st.text(st.characters(exclude_characters="/\x00", codec="utf-8"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200)


@settings(fuzzed, max_examples=80)
@given(st.dictionaries(NAMES, st.dictionaries(NAMES.map(lambda name: f"{name}.png") | NAMES, st.binary(max_size=40) | st.none(),
                                              max_size=3), max_size=3), st.data())
def test_image_folders_of_anything(tmp_path_factory, tree, data):
    """None stands for a good image; names are whatever a file system takes."""
    root = tmp_path_factory.getbasetemp() / "folder of anything"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, files in tree.items():
        (root / name).mkdir(exist_ok=True)
        for file, content in files.items():
            if content is None:
                noise(root / name / "x.png", 0)
                os.replace(root / name / "x.png", root / name / file)
            else:
                (root / name / file).write_bytes(content)

    def read():
        folder = ImageFolder(root, "--train-dir")
        assert len(folder.load()) == len(folder) == len(set(folder.paths))
        return [folder.read(index).size for index in range(len(folder))]

    refused_or(read)


@settings(fuzzed, max_examples=80)
@given(st.data())
def test_damaged_images(tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "damaged images"
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".bmp", ".webp", ".gif", ".tif"]))
    shutil.rmtree(root, ignore_errors=True)
    noise(root / "a" / f"x{suffix}", 0, 12)
    path = root / "a" / f"x{suffix}"
    path.write_bytes(data.draw(damaged(path.read_bytes())))

    def read():
        folder = ImageFolder(root, "--train-dir")
        data.draw(st.sampled_from([folder.load, folder.check]))()
        return folder.read(0).size

    refused_or(read)


def test_a_bomb_is_refused_by_what_it_claims(tmp_path):
    """A PNG of 30,000 x 30,000 equal pixels: 2.7 GB from a few kB."""
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed = zlib.compressobj(9)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed.compress(bytes(1 << 20)) + packed.flush()) + chunk(b"IEND", b"")
    assert len(content) < 5000
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(content)
    for work in (lambda folder: folder.load(), lambda folder: folder.check(), lambda folder: folder.read(0)):
        with pytest.raises(UserError, match="x.png: .* pixels"):
            work(ImageFolder(tmp_path, "--train-dir"))
