"""ImageFolder: what it lists and in which order, what it checks, and what names its images."""

import hashlib
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from conftest import ROOT
from helpers import gray, noise
from utils.data.image_folder import ImageFolder
from utils.run.errors import UserError


def test_listing_is_sorted_whatever_the_order_of_creation(tmp_path):
    names = ["b/2.png", "a/10.png", "b/1.JPG", "a/z/0.jpeg", "a/9.png", "c/x.png"]
    expected = ["a/10.png", "a/9.png", "a/z/0.jpeg", "b/1.JPG", "b/2.png", "c/x.png"]
    for number, order in enumerate((names, names[::-1])):
        root = tmp_path / str(number)
        for name in order:
            gray(root / name, 1)
        (root / "a" / "notes.txt").write_text("no image")
        (root / "a" / ".hidden.png").write_text("no image")
        (root / ".cache").mkdir()
        folder = ImageFolder(root, "--train-dir")
        assert folder.classes == ["a", "b", "c"]
        assert folder.paths == expected
        assert folder.labels == [0, 0, 0, 1, 1, 2]


def test_labels_follow_the_given_order_of_classes(tmp_path):
    for k, name in enumerate("abc"):
        gray(tmp_path / name / "0.png", 10 * k)
    folder = ImageFolder(tmp_path, "--val-dir", ["c", "a", "b"])
    assert dict(zip(folder.paths, folder.labels)) == {"c/0.png": 0, "a/0.png": 1, "b/0.png": 2}
    assert [folder.read(k).getpixel((0, 0))[0] for k in range(3)] == [20, 0, 10]


def test_other_classes_name_both_sides(tmp_path):
    for name in "abx":
        gray(tmp_path / name / "0.png", 0)
    many = {"abxcdefghij": "c, d, e, f, g, h, i, j$", "abxcdefghijkl": "c, d, e, f, g, h, i, j and 2 more$"}
    known = {"abcd": "missing: c, d; unknown: x", "abxc": "missing: c$", "ab": "unknown: x$", **many}
    for classes, complaint in known.items():
        with pytest.raises(UserError, match=f"--val-dir.*{complaint}"):
            ImageFolder(tmp_path, "--val-dir", list(classes))


@pytest.mark.parametrize(
    "theirs, ours, advice",
    [
        ("NFC", "NFD", "to NFC (convmv -r -f utf8 -t utf8 --nfc --notest"),
        ("NFD", "NFC", "to NFD (convmv"),
        (None, "NFC", ""),
    ],
)
def test_names_that_differ_in_their_unicode_form_alone(tmp_path, theirs, ours, advice):
    """As a disk of macOS and one of Linux may have them: both look alike, so that the same word twice says nothing."""
    names = ["caf\u00e9", "dog", "\u00fcber"]
    folder, classes = [unicodedata.normalize(ours, name) for name in names], ["cafe\u0301", *names[1:]]  # a mixture
    if theirs:
        classes = [unicodedata.normalize(theirs, name) for name in names]
    for name in folder:
        gray(tmp_path / name / "0.png", 0)
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path, "--val-dir", classes, "--train-dir", "give --flag")
    said = str(error.value)
    assert f"--val-dir {tmp_path}" in said and "Unicode form" in said and classes[0] in said and "dog" not in said
    assert "unknown" not in said and advice in said and said.endswith(", or give --flag")
    if theirs:  # what it advises, on these names
        for name in folder:
            (tmp_path / name).rename(tmp_path / unicodedata.normalize(theirs, name))
        assert ImageFolder(tmp_path, "--val-dir", classes).classes == classes


def test_the_form_of_names_does_not_hide_another_difference(tmp_path):
    for name in ["cafe\u0301", "dog"]:
        gray(tmp_path / name / "0.png", 0)
    for classes, complaint in ((["caf\u00e9", "cat"], "cat; unknown: .*dog"), (["caf\u00e9"], "2 classes, not 1.*dog")):
        with pytest.raises(UserError, match=complaint):
            ImageFolder(tmp_path, "--val-dir", classes)


def test_spaces_around_names_are_seen(tmp_path):
    for name in ["ant ", "a bee", "cat"]:
        gray(tmp_path / name / "0.png", 0)
    with pytest.raises(UserError, match="missing: ' cat', a  bee, ant; unknown: a bee, 'ant ', cat$"):
        ImageFolder(tmp_path, "--val-dir", ["ant", "a  bee", " cat"])


def test_first_images_of_each_class(tmp_path):
    for k in reversed(range(3)):
        gray(tmp_path / "a" / f"{k:03d}_x.png", k)
        gray(tmp_path / "b" / f"{k:03d}_x.png", 10 + k)
    folder = ImageFolder(tmp_path, "--syn-dir").first(2)
    assert folder.paths == ["a/000_x.png", "a/001_x.png", "b/000_x.png", "b/001_x.png"]
    assert folder.labels == [0, 0, 1, 1]
    with pytest.raises(UserError, match="'a' has 3 images"):
        ImageFolder(tmp_path, "--syn-dir").first(4)


def test_where_the_images_of_a_class_stand(tmp_path):
    counts = {"a": 3, "b": 1, "c": 2}
    for name, count in counts.items():
        for number in range(count):
            gray(tmp_path / name / f"{number}.png", number)
    folder = ImageFolder(tmp_path, "--train-dir", ["c", "a", "b"])
    assert [list(folder.span(label)) for label in range(3)] == [[0, 1], [2, 3, 4], [5]]
    assert folder.of_class(1) == ["a/0.png", "a/1.png", "a/2.png"]
    assert folder.fewest() == 1


def test_what_is_named_as_an_image_and_is_no_file(tmp_path):
    """A pipe would be waited for without end."""
    noise(tmp_path / "c" / "0.png", 0)
    os.mkfifo(tmp_path / "c" / "pipe")  # as good as not there
    assert ImageFolder(tmp_path, "--train-dir").paths == ["c/0.png"]
    os.symlink("nowhere.png", tmp_path / "c" / "1.png")
    with pytest.raises(UserError, match="c/1.png: is a link to nowhere.png, which is not there"):
        ImageFolder(tmp_path, "--train-dir")
    (tmp_path / "c" / "1.png").unlink()
    os.mkfifo(tmp_path / "c" / "2.png")
    with pytest.raises(UserError, match="c/2.png: is named as an image and is no file, but a pipe"):
        ImageFolder(tmp_path, "--train-dir")


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("harm", ["cut", "text"])
def test_a_bad_image_is_named_before_any_work(tmp_path, monkeypatch, kept, harm):
    gray(tmp_path / "c" / "fine.png", 9)
    bad = tmp_path / "c" / "x.png"
    noise(bad, 0, 64)
    bad.write_bytes(bad.read_bytes()[:-1000] if harm == "cut" else b"I am no image")
    for k in range(50):  # good images come before it
        os.link(tmp_path / "c" / "fine.png", tmp_path / "c" / f"f{k:03d}.png")
    (tmp_path / "c" / "z.png").write_bytes(b"bad too, and behind it")
    if not kept:  # a set too large for memory is only checked
        monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", 100)
    for check in (lambda folder: folder.load(2), lambda folder: folder.check(2)):
        with pytest.raises(UserError) as error:
            check(ImageFolder(tmp_path, "--train-dir"))
        assert str(bad) in str(error.value)


def test_images_are_kept_while_they_fit(tmp_path, monkeypatch):
    for number in range(3):
        noise(tmp_path / "c" / f"{number}.png", number, 10)
    folder = ImageFolder(tmp_path, "--train-dir")
    assert folder.load() == [(10, 10)] * 3 and folder.in_memory
    (tmp_path / "c" / "1.png").unlink()
    assert folder.read(1).size == (10, 10), "from memory"
    assert folder.load() == [(10, 10)] * 3, "and not decoded again"

    noise(tmp_path / "c" / "1.png", 1, 10)
    for limit in (2 * 4 * 100, 2 * 4 * 100 - 1):  # what two such images take, and less
        monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", limit)
        smaller = ImageFolder(tmp_path, "--train-dir")
        assert smaller.load(1) == [(10, 10)] * 3 and not smaller.in_memory
    (tmp_path / "c" / "2.png").unlink()
    with pytest.raises(UserError, match="2.png"):
        smaller.read(2)


def test_processes_check_a_part_each_of_a_set_too_large_for_memory_and_know_all_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for number in range(14):
        noise(tmp_path / "c" / f"{number:02d}.png", 0, 30 + number)
    cut = tmp_path / "c" / "08.png"
    cut.write_bytes(cut.read_bytes()[:-1000])
    messages = []
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        try:
            assert ImageFolder(tmp_path, "--train-dir").load(2) == [(30 + number, 30 + number) for number in range(14)]
        except UserError as error:
            messages.append(str(error))
    [message] = messages
    assert str(cut) in message
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match="08.png"):
            ImageFolder(tmp_path, "--train-dir").load(2, alone=True)


READ_LARGE_IMAGES = """
import sys

from utils.data import image_folder
from utils.run.device import Runtime


def megabytes(name):
    # Of this program alone: what getrusage says begins with the memory of the process that started it.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith(name))


Runtime.create("cpu")
image_folder.IN_MEMORY_BYTES = 400_000_000
before = megabytes("VmRSS")
image_folder.ImageFolder(sys.argv[1], "--train-dir").load(2)
print(megabytes("VmHWM") - before, megabytes("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory of a process")
def test_large_images_take_no_more_memory_than_may_be_kept_and_give_it_back(tmp_path):
    gray(tmp_path / "c" / "000.png", 9, 2000)  # 16 MB once it is decoded
    for number in range(1, 60):
        os.link(tmp_path / "c" / "000.png", tmp_path / "c" / f"{number:03d}.png")
    command = [sys.executable, "-c", READ_LARGE_IMAGES, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    most, left = map(float, done.stdout.split())
    assert most < 700, "400 are kept, and no more than a few images are in the threads' hands; all of them are 960"
    assert left < 300, "what malloc keeps of each thread, and not what was kept for a while"


# --- the fingerprint ----------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path):
    for name in "ab":
        for number in range(2):
            noise(tmp_path / name / f"{number}.png", number)
    return tmp_path


def fingerprint(root, classes=None, recorded=None):
    return ImageFolder(root, "--train-dir", classes).fingerprint(recorded)


def test_the_fingerprint_is_the_same_for_the_same_images_wherever_they_lie(pair):
    before = fingerprint(pair)
    assert fingerprint(pair) == before
    os.utime(pair / "a" / "0.png", (1, 1))
    (pair / "a" / "notes.txt").write_text("no image")
    moved = pair / "elsewhere"
    moved.mkdir()
    for name in "ab":
        os.rename(pair / name, moved / name)
    assert fingerprint(moved) == before


@pytest.mark.parametrize("change", ["bytes", "name", "removed", "label order", "class"])
def test_the_fingerprint_tells_other_images_apart(pair, change):
    before, classes = fingerprint(pair), None
    if change == "bytes":
        noise(pair / "a" / "0.png", 7)
    elif change == "name":
        os.rename(pair / "a" / "0.png", pair / "a" / "00.png")
    elif change == "removed":
        os.unlink(pair / "a" / "0.png")
    elif change == "label order":
        classes = ["b", "a"]
    else:
        os.rename(pair / "a" / "0.png", pair / "b" / "2.png")
    assert fingerprint(pair, classes) != before


def test_images_with_a_recorded_digest_are_not_read(pair):
    before = fingerprint(pair)
    recorded = {"a/0.png": hashlib.sha256((pair / "a" / "0.png").read_bytes()).hexdigest()}
    (pair / "a" / "0.png").write_bytes(b"other bytes, which nobody looks at")
    assert fingerprint(pair, recorded=recorded) == before
    assert fingerprint(pair) != before


@pytest.fixture
def made(tmp_path):
    """A set of two images and its manifest, which `change` writes with other content."""
    names = ["a/0.png", "b/0.png"]
    for name in names:
        gray(tmp_path / name, 1)
    images = {name: {"sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()} for name in names}
    content = {"settings": {"iterations": 2}, "finished": True, "images": images}

    def change(**changed):
        (tmp_path / "manifest.json").write_text(json.dumps({**content, **changed}))
        return tmp_path

    return change


def test_a_whole_set_is_listed(made):
    assert ImageFolder(made(), "--syn-dir").paths == ["a/0.png", "b/0.png"]


def test_a_set_that_is_not_finished_is_no_set(made):
    (made(finished=False, images={}) / "b" / "0.png").unlink()
    with pytest.raises(UserError, match="--syn-dir .*: is not complete.*run its command again"):
        ImageFolder(made(finished=False, images={}), "--syn-dir")


def test_a_set_that_lost_images_is_another_set_until_its_manifest_is_removed(made):
    root = made()
    gray(root / "a" / "1.png", 1)
    (root / "a" / "0.png").unlink()
    with pytest.raises(UserError, match=r"--init-dir .*: a/0.png is missing of the 2 images of .*manifest.json"):
        ImageFolder(root, "--init-dir")
    (root / "b" / "0.png").rename(root / "b" / "1.png")
    with pytest.raises(UserError, match=r"--init-dir .*: a/0.png and 1 more are missing of the 2 images"):
        ImageFolder(root, "--init-dir")
    (root / "manifest.json").unlink()
    assert ImageFolder(root, "--init-dir").paths == ["a/1.png", "b/1.png"]


@pytest.mark.parametrize(
    "content", ["[]", "{", "3", '{"finished": false}', '{"sha256": {"a/7.png": "%s"}}' % ("0" * 64)]
)
def test_a_file_that_only_has_the_name_of_a_manifest_says_nothing(made, content):
    root = made()
    (root / "manifest.json").write_text(content)
    assert len(ImageFolder(root, "--train-dir")) == 2
