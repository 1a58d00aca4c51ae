"""Folders of images that cannot be used are one clear line that names them, exit code 2, and nothing written."""

import shutil

import pytest
from PIL import Image

from conftest import draw, snapshot
from refusals import STAGES, refused
from utils.data.image_folder import ImageFolder

FLAGS = {  # each stage with the folders that it reads
    ("squeeze", "train"): "--train-dir",
    ("squeeze", "val"): "--val-dir",
    ("ranking", "train"): "--train-dir",
    ("recover", "init"): "--init-dir",
    ("validate", "init"): "--syn-dir",
    ("validate", "val"): "--val-dir",
}
READERS = list(FLAGS)


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_lines_that_are_spoilt_in_the_tests_of_bad_input_are_good(place, stage):
    place.works(stage)


@pytest.mark.slow
def test_a_process_says_it_in_one_line_too(place):
    before = snapshot(place.root)
    outcome = place.spawn("recover", init_dir=place / "nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and str(place / "nowhere") in outcome.err
    assert snapshot(place.root) == before


@pytest.mark.parametrize("stage, folder", READERS)
def test_a_folder_of_images_that_is_none(place, stage, folder):
    root = place / folder
    flag = FLAGS[stage, folder]
    (root / "moth").rename(place / "moth")
    (root / "moth").mkdir()
    refused(place, stage, flag, root, "'moth'")  # an empty class
    shutil.rmtree(root)
    refused(place, stage, flag, root)  # missing
    root.mkdir()
    refused(place, stage, flag, root, "empty")
    shutil.copy(next((place / "moth").iterdir()), root / "flat.png")
    refused(place, stage, flag, root, "sub-folder")  # flat


@pytest.mark.parametrize("stage, folder", [reader for reader in READERS if reader != ("squeeze", "train")])
def test_classes_that_differ_are_named_on_both_sides(place, stage, folder):
    (place / folder / "moth").rename(place / folder / "bat")
    line = refused(place, stage, place / folder)
    assert "missing: moth" in line and "unknown: bat" in line


@pytest.mark.parametrize(
    "stage, folder, changes",
    [
        ("ranking", "train", {}),
        ("ranking", "train", {"criterion": "random"}),
        ("recover", "init", {}),
        ("validate", "init", {}),
    ],
)
def test_a_class_with_fewer_images_than_ipc(place, stage, folder, changes):
    next((place / folder / "moth").iterdir()).unlink()
    left = len(list((place / folder / "moth").iterdir()))
    refused(place, stage, "moth", left, "--ipc", ipc=left + 1, **changes)


@pytest.mark.parametrize(
    "stage, folder, changes",
    [
        ("squeeze", "train", dict(arch="mobilenet_v2")),
        ("squeeze", "train", {}),  # a network that could be trained, as its last BatchNorm sees several pixels
        ("validate", "init", dict(student_arch="mobilenet_v2", protocol="hard", teacher_path=None)),
        ("validate", "init", dict(student_arch="conv3", protocol="hard", teacher_path=None, ipc=1)),
    ],
)
def test_a_single_image_in_all_is_nothing_to_train_on(place, stage, folder, changes):
    """One class is all; its images are left where `ipc` takes one of them."""
    for root in (place / folder, place.val):
        for name in "moth", "zebra":
            shutil.rmtree(root / name)
    for path in sorted((place / folder / "ant").iterdir())[1:] if "ipc" not in changes else []:
        path.unlink()
    refused(place, stage, FLAGS[stage, folder], place / folder, "single image", "BatchNorm", **changes)


def cut(path):
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])


def text(path):
    path.write_text("not an image")


@pytest.mark.parametrize(
    "spoil, name", [(text, "text.png"), (cut, "cut.png"), (cut, "cut.jpg")], ids=["text", "cut PNG", "cut JPEG"]
)
@pytest.mark.parametrize("stage, folder", READERS)
def test_an_unreadable_image_is_named_before_any_work(place, stage, folder, spoil, name):
    # First in its class and of the last class by name, so that it is met only if all images are looked at.
    path = place / folder / "zebra" / f"000_{name}"
    draw(place / "zebra", (0, 0, 0), 1, "spoilt", 32)
    Image.open(place / "zebra" / "zebra0.png").save(path)
    spoil(path)
    before = snapshot(place.root)
    outcome = place.run(stage)
    assert outcome.code == 2 and outcome.err.strip().splitlines()[-1].startswith(f"error: {path}")
    assert outcome.out == ""  # nothing was begun
    assert snapshot(place.root) == before


# --- links -----------------------------------------------------------------------------------------------------------


def test_links_to_images_are_followed(place):
    elsewhere = place / "elsewhere"
    shutil.copytree(place.train / "ant", elsewhere)
    count = len(ImageFolder(place.train, "--train-dir"))
    (place.train / "ant" / "more").symlink_to(elsewhere)
    assert len(ImageFolder(place.train, "--train-dir")) == count + 7


@pytest.mark.parametrize(
    "link, target, words",
    [
        ("ant/loop", "..", "leads back"),
        ("ant/loop", ".", "leads back"),
        ("ant/deep/loop", "../..", "leads back"),
        ("ant/loop", "../../train", "leads back"),
        ("bee", "nowhere", "nowhere"),
        ("bee", "bee", "nowhere"),
    ],
)
def test_links_that_lead_nowhere_or_back(place, link, target, words):
    (place.train / link).parent.mkdir(exist_ok=True)
    (place.train / link).symlink_to(target)
    outcome = place.run("ranking")
    assert outcome.code == 2 and words in outcome.err and link in outcome.err and len(outcome.err.splitlines()) == 1
