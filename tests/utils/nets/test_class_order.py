"""The order of a teacher's classes: read from a file, and judged by what the teacher says of labelled images."""

import random

import pytest
import torch

from helpers import gray
from utils.data.geometry import Geometry
from utils.data.image_folder import ImageFolder
from utils.nets import class_order
from utils.nets.class_order import SORTED, Answers, check, sample, settle
from utils.run.errors import UserError


def answers(called, per_class, share=1.0, seed=0):
    """Of a teacher that gives label k's images the class `called[k]`, a `share` of them, and any class to the rest."""
    rng, count = random.Random(seed), len(called)
    labels = [label for label in range(count) for _ in range(per_class)]
    predicted = [called[label] if rng.random() < share else rng.randrange(count) for label in labels]
    return Answers.of(torch.tensor(labels), torch.tensor(predicted), count)


def numbered(count):
    """The folders 0, 1, ..., and what a teacher that counts by number calls each, as they are sorted as text."""
    names = sorted(map(str, range(count)))
    return names, [int(name) for name in names]


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("count, per_class", [(12, 24), (100, 10), (200, 10), (1000, 3)])
def test_numbers_sorted_as_text_are_found(count, per_class, share, capsys):
    """Of 100 numbers 12 stand in their place when they are sorted as text, which is far above chance."""
    names, called = numbered(count)
    found = answers(called, per_class, share)
    with pytest.raises(UserError) as error:
        check(found, names, "ranking: conv3", SORTED)
    assert (
        "sorted as text" in str(error.value) and "--classes FILE" in str(error.value) and "\n" not in str(error.value)
    )
    check(answers(list(range(count)), per_class, share), names, "ranking: conv3", SORTED)  # the right order
    assert f"chance: {100 / count:.1f} %" in capsys.readouterr().out


@pytest.mark.parametrize("count, per_class, share", [(3, 20, 1.0), (10, 3, 1.0), (12, 1, 1.0), (200, 50, 0.4)])
def test_any_other_order_is_found(count, per_class, share):
    called = [*range(1, count), 0]
    with pytest.raises(UserError, match="--classes FILE"):
        check(answers(called, per_class, share), [f"{k:03d}" for k in range(count)], "x", SORTED)


def test_two_classes_that_changed_places_are_found():
    called = [0, 1, 7, 3, 4, 5, 6, 2, 8, 9]  # 80 % are right
    names = list("abcdefghij")
    with pytest.raises(UserError, match="'c' as 'h'.*2 classes"):
        check(answers(called, 20), names, "x", SORTED)


def test_a_teacher_that_guesses_is_near_chance():
    for count in 10, 12, 100:
        guesses = answers([0] * count, 20, share=0.0)
        with pytest.raises(UserError, match="near chance"):
            check(guesses, [f"{k:03d}" for k in range(count)], "x", SORTED)
        with pytest.raises(UserError, match="near chance"):  # one class for all
            check(answers([0] * count, 20), [f"{k:03d}" for k in range(count)], "x", SORTED)


@pytest.mark.parametrize(
    "count, per_class, share",
    [
        (2, 100, 0.5),
        (3, 40, 0.4),
        (10, 30, 0.2),
        (10, 2, 0.3),
        (100, 3, 0.1),
        (1000, 1, 0.05),
        (4, 1, 0.0),
        (12, 1, 0.2),
    ],
)
def test_weak_teachers_and_few_images_are_let_through(count, per_class, share):
    """Right about share + (1 - share) / count: above twice chance, or of too few images to tell."""
    names = [f"{k:04d}" for k in range(count)]
    refused = 0
    for seed in range(40):
        try:
            check(answers(list(range(count)), per_class, share, seed), names, "x", SORTED)
        except UserError:
            refused += 1
    assert refused <= 1


def test_classes_that_are_hard_to_tell_apart_are_no_exchange():
    """Half of a's images are called b, and half of b's a."""
    counts = torch.eye(10, dtype=torch.long) * 50
    counts[:2, :2] = torch.tensor([[24, 26], [26, 24]])
    check(Answers(counts), list("abcdefghij"), "x", SORTED)
    counts[:2, :2] = torch.tensor([[5, 45], [0, 50]])  # one class is always called the other
    check(Answers(counts), list("abcdefghij"), "x", SORTED)


def test_the_checkpoints_own_order_is_never_refused(capsys):
    names, called = numbered(12)
    check(answers(called, 24), names, "ranking: conv3", None)
    assert "16.7 % of 288 images" in capsys.readouterr().out  # 2 of 12: 0 and 1 stand in their places


def test_a_file_in_a_wrong_order_is_named():
    with pytest.raises(UserError, match="order of --classes list.txt.*correct list.txt"):
        check(answers([1, 2, 0], 20), list("abc"), "x", "--classes list.txt")


def geometry(classes, count=3):
    return Geometry(16, (0.5,) * 3, (0.5,) * 3, count, classes, "cifar")


def test_a_file_of_names(tmp_path):
    path = str(tmp_path / "classes.txt")
    for text in "b\na c\nü\n", "b\r\na c\r\nü", "\ufeffb\na c\nü\n\n", "b \na c\t\nü  \n":
        (tmp_path / "classes.txt").write_bytes(text.encode())
        found, order = settle("t.pth", geometry(None), path)
        assert found.classes == ("b", "a c", "ü") and path in order
    assert settle("t.pth", geometry(("b", "a c", "ü")), path) == (geometry(("b", "a c", "ü")), None)
    found, order = settle("t.pth", geometry(("tench", "goldfish", "shark")), path)  # other names for the same classes
    assert found.classes == ("b", "a c", "ü") and path in order
    assert settle("t.pth", geometry(None), None) == (geometry(None), SORTED)
    with pytest.raises(UserError, match="class 0 is 'b'.*class 0 'ü'"):
        settle("t.pth", geometry(("ü", "a c", "b")), path)
    with pytest.raises(UserError, match="names 3 classes, t.pth has 4"):
        settle("t.pth", geometry(None, 4), path)


@pytest.mark.parametrize("text", [b"", b"a\n\nb\n", b"a\n \nb\n", b"a \nb\na\n", b"\xff\xfe", None], ids=repr)
def test_a_file_that_is_no_list_of_names(tmp_path, text):
    path = tmp_path / "classes.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match="--classes .*classes.txt"):
        class_order.read_names(str(path))


def test_a_class_of_one_image_leaves_the_others_judged(tmp_path, monkeypatch):
    for name, count in ("a", 30), ("b", 1), ("c", 14):
        for number in range(count):
            gray(tmp_path / name / f"{number}.png", number)
    monkeypatch.setattr(class_order, "SAMPLE", 60)  # 20 of each class
    asked = sample(ImageFolder(tmp_path, "--train-dir"))
    assert asked.labels == [0] * 20 + [1] + [2] * 14
    labels = torch.tensor(asked.labels)
    with pytest.raises(UserError, match="another order than the teacher's"):
        check(Answers.of(labels, 2 - labels, 3), "abc", "ranking: conv3", SORTED)


def test_a_single_class_is_in_order():
    check(Answers(torch.tensor([[100]])), ["ant"], "teacher", SORTED)
