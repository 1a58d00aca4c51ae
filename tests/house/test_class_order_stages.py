"""Teachers that do not name their classes, sets whose folders have other names, and what each stage makes of them."""

import json
import shutil

import pytest
import torch
from PIL import Image

from conftest import Place, images
from refusals import refused
from utils.nets import checkpoints

COUNT, PIXELS, INPUT = 12, 16, 14
COLOURS = [(40 + 210 * (k % 3 == 0), 40 + 70 * (k // 3), 250 * (k % 3 == 2)) for k in range(COUNT)]
FLAGS = dict(teacher_arch="conv3", input_size=INPUT, mean=(0.4, 0.5, 0.6), std=(0.3, 0.25, 0.2))


def plain(folder, colour, count):
    folder.mkdir(parents=True)
    for number in range(count):
        image = Image.new("RGB", (PIXELS, PIXELS), colour)
        image.putpixel((number, number), (255, 255, 255))
        image.save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Twelve classes named 0 to 11, and a teacher that counts them by number, once nameless and once not."""
    place = Place(tmp_path_factory.mktemp("numbers"))
    for number, colour in enumerate(COLOURS):
        for folder, count in ((place.train, 6), (place.val, 4), (place.init, 3)):
            plain(folder / f"{number:02d}", colour, count)
    place.works("squeeze", output=place.teacher, epochs=12)
    content = checkpoints.read(place.teacher)
    weights, top1 = content["model"], content["top1"]
    assert top1 > 90
    facts = {name: content[name] for name in ("arch", "input_size", "mean", "std", "stem")}
    torch.save({"model": weights, **facts, "classes": [str(k) for k in range(COUNT)]}, place / "named.pth")
    torch.save(weights, place.teacher)
    for root in place.train, place.val, place.init:
        for number in range(COUNT):
            (root / f"{number:02d}").rename(root / f"_{number}")
            (root / f"_{number}").rename(root / str(number))
    (place / "classes.txt").write_text("".join(f"{k}\n" for k in range(COUNT)))
    return place


@pytest.fixture
def place(numbers, tmp_path):
    shutil.copytree(numbers.root, tmp_path, dirs_exist_ok=True)
    return Place(tmp_path)


@pytest.mark.parametrize("stage", ["ranking", "recover", "validate"])
def test_an_order_that_is_not_the_teachers_is_refused_by_every_stage(place, stage):
    refused(place, stage, "sorted as text", "16.7 %", "--classes FILE", **FLAGS)


def test_the_order_is_judged_from_noise_too_by_real_images(place):
    """Which --init-dir has: the noise is called as the teacher sees it, and would lie under another class's name."""
    noise = dict(method="sre2l", iterations=1, round_iterations=None, ipc=1)
    for line in noise, dict(method="delt", init="noise", ipc=1):
        refused(place, "recover", "sorted as text", "16.7 %", "--classes FILE", init_dir=place.train, **line, **FLAGS)
    said = place.works("recover", init_dir=place.train, classes=place / "classes.txt", **noise, **FLAGS)
    assert "% of 72 images of 12 classes" in said
    without = dict(syn_dir=place / "without", init_dir=None, classes=place / "classes.txt", **FLAGS)
    assert "is right about" not in place.works("recover", **noise, **without), "there are no images"
    named = dict(syn_dir=place / "named", init_dir=place.train, teacher_path=place / "named.pth")
    assert "is right about" not in place.works("recover", **noise, **named), "the teacher says it"


def test_a_teacher_beside_hard_labels_is_judged_as_well(place):
    """A set that it guided may lie under wrong names; without it there is nothing to judge."""
    refused(place, "validate", "sorted as text", "--classes FILE", protocol="hard", **FLAGS)
    place.works("validate", protocol="hard", classes=place / "classes.txt", **FLAGS)
    line = dict(protocol="hard", student_arch="conv3", teacher_path=None, input_size=INPUT)
    assert "is right about" not in place.works("validate", **line)


def test_the_order_is_said(place):
    outcome = place.run("ranking", **FLAGS)
    said = [line for line in outcome.out.splitlines() if "sorted" in line]
    assert len(said) == 2 and "classes in the sorted order" in said[0] and "0, 1, 10, 11" in said[1]


@pytest.mark.parametrize("stage", ["ranking", "recover", "validate"])
def test_a_file_gives_the_order_and_the_result_is_that_of_a_teacher_with_names(place, stage):
    result = {"ranking": "ranking.csv", "recover": "syn", "validate": "measured/results.csv"}[stage]

    def found():
        path = place / result
        if stage == "recover":
            return images(path)
        if stage == "ranking":
            return path.read_bytes(), sorted(images(place / "selected").items())
        header, row = (line.split(",") for line in path.read_text().splitlines())
        row = dict(zip(header, row))
        return row["top1"], row["best_top1"], row["top5"]

    place.works(stage, teacher_path=place / "named.pth")
    expected = found()
    for name in "ranking.csv", "selected", "syn", "measured":
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    said = place.works(stage, classes=place / "classes.txt", **FLAGS)
    assert "is right about 100.0 %" in said or "is right about 9" in said
    assert found() == expected


def test_a_file_in_a_wrong_order_is_refused(place):
    names = (place / "classes.txt").read_text().split()
    (place / "classes.txt").write_text("\n".join(names[::-1]))
    refused(place, "ranking", "classes.txt", "order", classes=place / "classes.txt", **FLAGS)


def test_a_file_beside_a_teacher_with_names(place):
    path = place / "classes.txt"
    place.works("ranking", teacher_path=place / "named.pth", classes=path)
    path.write_text("\n".join(map(str, [1, 0, *range(2, COUNT)])))
    refused(place, "ranking", path, "'1'", teacher_path=place / "named.pth", ranking_file=place / "n.csv", classes=path)
    path.write_text("0\n1\n")
    refused(place, "ranking", path, "2 classes", 12, ranking_file=place / "n.csv", classes=path, **FLAGS)


def test_a_file_without_a_teacher_is_refused(place):
    line = dict(protocol="hard", teacher_path=None, student_arch="conv3", input_size=INPUT)
    refused(place, "validate", "--classes", "no teacher", classes=place / "classes.txt", **line)


TEACHERS = [dict(teacher_path="named.pth"), dict(classes="classes.txt", **FLAGS)]


def of(place, teacher):
    return {name: place / value if name in ("teacher_path", "classes") else value for name, value in teacher.items()}


def top1(place):
    return [line.split(",")[7] for line in (place / "measured/results.csv").read_text().splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("teacher", TEACHERS, ids=["named", "file"])
@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_a_published_set_is_taken_by_position_if_that_is_said(place, teacher, labels):
    line = dict(protocol="delt" if labels == "soft" else "hard", epochs=4, **of(place, teacher))
    place.works("validate", **line)
    for number in range(COUNT):
        (place.init / str(number)).rename(place.init / f"new{number:03d}")
    refused(place, "validate", "new000", "--classes-by position", place.init, **line)
    said = place.works("validate", classes_by="position", **line)
    assert "new000 is 0, new001 is 1, new002 is 2" in said
    by_name, by_position = top1(place)
    assert by_name == by_position
    shutil.rmtree(place.init / "new011")
    refused(place, "validate", place.init, "11 class folders", 12, classes_by="position", **line)


def test_numbers_without_leading_zeros_are_taken_by_number(place):
    for number in range(COUNT):
        (place.init / str(number)).rename(place.init / f"class{number}")
    said = place.works("validate", classes_by="position", teacher_path=place / "named.pth")
    assert "class0 is 0, class1 is 1, class2 is 2" in said


def test_by_position_without_a_teacher_both_folders_are_taken_by_number(place):
    """With names as without: the same images of the same classes, so the same student."""
    line = dict(protocol="hard", teacher_path=None, student_arch="conv3", input_size=INPUT, epochs=2, lr=0.01)
    for root in place.init, place.val:
        for number in range(COUNT):
            (root / str(number)).rename(root / f"{number:02d}")
    place.works("validate", **line)
    for number in range(COUNT):
        (place.init / f"{number:02d}").rename(place.init / f"new{number:03d}")
        (place.val / f"{number:02d}").rename(place.val / str(number))
    said = place.works("validate", classes_by="position", **line)
    assert "new000 is 0, new001 is 1, new002 is 2" in said
    curves = [json.loads(path.read_text())["seeds"][0]["curve"] for path in place.root.glob("measured/results/*.json")]
    assert len(curves) == 2 and curves[0] == curves[1]


def test_by_position_of_a_teacher_that_nobody_names_the_order_of_its_folders_is_said(place):
    """It may count by number, or have learnt them as text; only its answers tell."""
    as_published(place)
    outcome = place.run("validate", classes_by="position", **FLAGS)
    assert outcome.code == 2 and "sorted as text: 0, 1, 10, 11, ...; if the teacher counts by number" in outcome.out
    said = place.works("recover", init_dir=place.train, ipc=3, classes_by="position", **FLAGS)
    assert "taken by number: 0, 1, 2, 3, ...; if the teacher sorts them as text" in said


@pytest.mark.parametrize("protocol", ["delt", "hard"])
@pytest.mark.parametrize("teacher", [*TEACHERS, None], ids=["named", "file", "none"])
def test_a_class_of_another_name_is_refused_whatever_the_labels(place, protocol, teacher):
    (place.init / "0").rename(place.init / "zebra")
    line = of(place, teacher) if teacher else {**FLAGS, "student_arch": "conv3"}
    refused(place, "validate", "zebra", place.init, place.val, protocol=protocol, **line)


def test_labels_on_disk_know_the_classes_of_a_set_by_position(place):
    for number in range(COUNT):
        (place.init / str(number)).rename(place.init / f"new{number:03d}")
    line = dict(teacher_path=place / "named.pth", classes_by="position", save_labels=place / "labels")
    place.works("validate", **line)
    line = dict(teacher_path=None, classes_by="position", load_labels=place / "labels", student_arch="conv3")
    place.works("validate", output_dir=place / "again", **line)
    rows = [(place / name / "results.csv").read_text().splitlines()[1].split(",") for name in ("measured", "again")]
    assert rows[0][7:10] == rows[1][7:10]


def as_published(place):
    for number in range(COUNT):
        (place.init / str(number)).rename(place.init / f"new{number:03d}")


@pytest.mark.parametrize("teacher", TEACHERS, ids=["named", "file"])
def test_starts_of_other_names_are_taken_by_position_if_that_is_said(place, teacher):
    line = of(place, teacher)
    place.works("recover", syn_dir=place / "by_name", **line)
    as_published(place)
    refused(place, "recover", "new000", "--classes-by position", place.init, **line)
    said = place.works("recover", classes_by="position", **line)
    assert "new000 is 0, new001 is 1, new002 is 2" in said
    assert images(place.syn) == images(place / "by_name"), "under the teacher's names"
    shutil.rmtree(place.init / "new011")
    refused(place, "recover", place.init, "11 class folders", 12, classes_by="position", **line)


def test_starts_by_position_for_a_teacher_that_nobody_names(place):
    """Folders keep their names: 0 to 11, by number as the teacher counts them."""
    place.works("recover", syn_dir=place / "by_name", teacher_path=place / "named.pth")
    place.works("recover", classes_by="position", **FLAGS)
    assert images(place.syn) == images(place / "by_name")


def test_starts_by_position_that_have_the_very_names_are_taken_by_name(place):
    names = [str(k) for k in (3, 1, 2, 0, *range(4, COUNT))]
    content = torch.load(place / "named.pth", weights_only=True)
    torch.save({**content, "classes": names}, place / "named.pth")
    for first, second in ((place.init / "0", place.init / "3"),):
        first.rename(place.init / "other")
        second.rename(first)
        (place.init / "other").rename(second)
    line = dict(teacher_path=place / "named.pth")
    place.works("recover", syn_dir=place / "by_name", **line)
    place.works("recover", classes_by="position", **line)
    assert images(place.syn) == images(place / "by_name")


def test_another_way_to_take_the_classes_is_another_run(place):
    place.works("recover", **of(place, TEACHERS[0]))
    as_published(place)
    refused(place, "recover", "another run", classes_by="position", **of(place, TEACHERS[0]))


def letters(place):
    """The same classes with names whose sorted order is the teacher's, and a teacher that says them."""
    for root in place.train, place.val, place.init:
        for number in range(COUNT):
            (root / str(number)).rename(root / f"{number:02d}")
    content = torch.load(place / "named.pth", weights_only=True)
    torch.save({**content, "classes": [f"{k:02d}" for k in range(COUNT)]}, place / "named.pth")


@pytest.mark.parametrize("stage", ["recover", "validate"])
@pytest.mark.parametrize("first", ["named.pth", "teacher.pth"])
def test_a_teacher_with_names_and_one_without_work_together(place, stage, first):
    letters(place)
    second = {"named.pth": "teacher.pth", "teacher.pth": "named.pth"}[first]
    line = {**FLAGS, "teacher_path": [place / first, place / second]}
    assert "is right about" in place.works(stage, **line), "the order of the one without names is checked"


@pytest.mark.parametrize("stage", ["recover", "validate"])
def test_they_do_so_in_the_order_of_a_file(place, stage):
    line = {**FLAGS, "teacher_path": [place / "named.pth", place.teacher]}
    refused(place, stage, "sorted order", "--classes FILE", **line)
    place.works(stage, classes=place / "classes.txt", **line)


def test_one_without_names_that_has_another_order_is_refused_by_its_answers(place):
    letters(place)
    weights = torch.load(place.teacher, weights_only=True)
    last = [name for name in weights if name.startswith("classifier")]
    torch.save({k: v.flip(0) if k in last else v for k, v in weights.items()}, place.teacher)
    refused(place, "recover", "another order", **{**FLAGS, "teacher_path": [place / "named.pth", place.teacher]})


def test_images_that_the_teacher_gets_wrong_do_not_judge_it(place):
    """As `--criterion min` selects them: here each folder has the images of the next one."""
    names = sorted(path.name for path in place.init.iterdir())
    for number, name in enumerate(names):
        (place.init / name).rename(place.init / f"_{names[number - 1]}")
    for name in names:
        (place.init / f"_{name}").rename(place.init / name)
    line = {**FLAGS, "classes": place / "classes.txt"}
    refused(place, "recover", "right about 0.0 %", **line)
    (place.init / "manifest.json").write_text(json.dumps({"settings": {"criterion": "min"}}))
    assert "cannot judge the order of the classes" in place.works("recover", **line)
