"""What a user gets wrong is one clear line that names it, exit code 2, and nothing written."""
import pickle
import shutil
import urllib.error
import zipfile

import pytest
import torch
import torchvision
from PIL import Image

from conftest import INPUT, draw, images, snapshot
from utils.images import ImageFolder

STAGES = ("squeeze", "ranking", "recover", "validate")
READERS = [("squeeze", "train"), ("squeeze", "val"), ("ranking", "train"), ("recover", "init"), ("validate", "init"),
           ("validate", "val")]  # each stage with the folders that it reads
TEACHERS = ("ranking", "recover", "validate")


def refused(place, stage, *named, env=None, **changes):
    """Run the stage; it has to refuse in one line that holds `named`, and to leave every file as it was."""
    before = snapshot(place.root)
    outcome = place.run(stage, env, **changes)
    assert outcome.code == 2, f"exit code {outcome.code}: {outcome.out}{outcome.err}"
    lines = outcome.err.strip().splitlines()
    assert lines[-1].startswith("error: ") and [line for line in lines if "error" in line.lower()] == lines[-1:]
    assert "Traceback" not in outcome.err
    for name in named:
        assert str(name) in lines[-1]
    assert snapshot(place.root) == before
    return lines[-1]


def weights_of(place):
    return torch.load(place.teacher, weights_only=True)["model"]


def replace_teacher(place, **facts):
    """The teacher with other facts; None takes one away."""
    content = {**torch.load(place.teacher, weights_only=True), **facts}
    torch.save({name: value for name, value in content.items() if value is not None}, place.teacher)


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_lines_that_are_spoilt_below_are_good(place, stage):
    place.works(stage)


def test_a_process_says_it_in_one_line_too(place):
    before = snapshot(place.root)
    outcome = place.spawn("recover", init_dir=place / "nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and str(place / "nowhere") in outcome.err
    assert snapshot(place.root) == before


# --- folders -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage, folder", READERS)
def test_a_folder_of_images_that_is_none(place, stage, folder):
    root = place / folder
    flag = {"train": "--train-dir", "val": "--val-dir", "init": "--init-dir" if stage == "recover" else "--syn-dir"}[folder]
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


@pytest.mark.parametrize("stage, folder, changes", [("ranking", "train", {}), ("ranking", "train", {"criterion": "random"}),
                                                    ("recover", "init", {}), ("validate", "init", {})])
def test_a_class_with_fewer_images_than_ipc(place, stage, folder, changes):
    next((place / folder / "moth").iterdir()).unlink()
    left = len(list((place / folder / "moth").iterdir()))
    refused(place, stage, "moth", left, "--ipc", ipc=left + 1, **changes)


def cut(path):
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])


def text(path):
    path.write_text("not an image")


@pytest.mark.parametrize("spoil, name", [(text, "text.png"), (cut, "cut.png"), (cut, "cut.jpg")],
                         ids=["text", "cut PNG", "cut JPEG"])
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


# --- checkpoints -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", TEACHERS)
def test_a_checkpoint_of_another_architecture(place, stage):
    refused(place, stage, place.teacher, "conv3", "conv4", teacher_arch="conv4")
    bare = place / "bare.pth"
    torch.save(weights_of(place), bare)
    refused(place, stage, bare, "--teacher-arch", teacher_path=bare)
    refused(place, stage, bare, "conv4", "layers.conv.3", teacher_path=bare, teacher_arch="conv4", input_size=16)
    refused(place, stage, "nosuchnet", teacher_path=bare, teacher_arch="nosuchnet")


def test_a_checkpoint_of_another_stem(place):
    """3 x 3 is the small-image stem's first convolution, 7 x 7 ImageNet's."""
    weights, bare = torchvision.models.resnet18(num_classes=3).state_dict(), place / "resnet.pth"
    for own, other, width in (("imagenet", "cifar", 7), ("cifar", "imagenet", 3)):
        weights["conv1.weight"] = torch.zeros(64, 3, width, width)
        torch.save(weights, bare)
        refused(place, "ranking", bare, own, "--stem", teacher_path=bare, teacher_arch="resnet18", stem=other)
    refused(place, "ranking", place.teacher, "cifar", "imagenet", stem="imagenet")


@pytest.mark.parametrize("stage, folder", [("ranking", "train"), ("recover", "init"), ("validate", "init")])
def test_a_checkpoint_of_another_number_of_classes(place, stage, folder):
    replace_teacher(place, classes=None)
    draw(place / folder / "wasp", (90, 90, 90), 7, "wasp")
    refused(place, stage, place / folder, "4 classes", "3")
    replace_teacher(place, classes=["a", "b", "c", "d"], num_classes=4)
    refused(place, stage, place.teacher, "4 classes")


def test_a_checkpoint_of_another_size(place):
    refused(place, "ranking", place.teacher, INPUT, 16, input_size=16)
    replace_teacher(place, input_size=16)
    refused(place, "ranking", place.teacher, "classifier.weight", 16)


@pytest.mark.parametrize("content", [
    b"", b"hello", bytes(1000), pickle.dumps({"model": pickle.Unpickler}, 2), pickle.dumps([1, 2], 2),
    b"\x89PNG\r\n\x1a\n" + bytes(50), b"\x80\x02.", b"PK\x03\x04" + bytes(60),
], ids=["empty", "text", "zeros", "objects", "list", "png", "hollow pickle", "hollow zip"])
@pytest.mark.parametrize("stage", ["ranking", "squeeze"])
def test_a_file_that_is_no_checkpoint(place, stage, content):
    """As the teacher, and as what squeeze would write over."""
    path = place.teacher if stage == "ranking" else place / "squeezed.pth"
    path.write_bytes(content)
    refused(place, stage, path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"model": {}}, {"epoch": 3}, torch.zeros(3)],
                         ids=["list", "nothing", "no weights", "number", "tensor"])
def test_a_checkpoint_without_weights(place, content):
    torch.save(content, place.teacher)
    refused(place, "ranking", place.teacher)


@pytest.mark.parametrize("stage", TEACHERS)
def test_a_checkpoint_that_is_cut_off_foreign_missing_or_a_folder(place, stage):
    cut(place.teacher)
    refused(place, stage, place.teacher)
    with zipfile.ZipFile(place.teacher, "w") as archive:
        archive.writestr("something.txt", "else")
    refused(place, stage, place.teacher)
    place.teacher.unlink()
    refused(place, stage, place.teacher, "no such")
    place.teacher.mkdir()
    refused(place, stage, place.teacher)


@pytest.mark.parametrize("stage", TEACHERS)
def test_no_teacher_at_all(place, stage):
    refused(place, stage, "--teacher-path", teacher_path=None)


@pytest.mark.parametrize("stage", TEACHERS)
def test_pretrained_weights_without_a_network(place, stage, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    refused(place, stage, "resnet18", "Name or service not known", "--teacher-path", teacher_path=None,
            teacher_arch="resnet18", dataset="imagenet1k")


def test_noise_without_classes_or_size(place):
    """Neither the teacher nor a folder says what to make."""
    noise = dict(init="noise", init_dir=None, round_iterations=0)
    replace_teacher(place, classes=None)
    refused(place, "recover", place.teacher, "--init-dir", **noise)
    replace_teacher(place, input_size=None)
    refused(place, "recover", place.teacher, "--input-size", **noise)


# --- ranking files -----------------------------------------------------------------------------------------------

@pytest.fixture
def ranked(place):
    rows = [f"{path.parent.name}/{path.name},{path.parent.name},0.{k}" for k, path in enumerate(sorted(place.train.glob("*/*")))]
    (place / "ranking.csv").write_text("\n".join(["img_path,class,score", *rows, ""]))
    return place


@pytest.mark.parametrize("old, new, named", [
    ("ant/ant3.png", "ant/gone.png", ["line 5", "ant/gone.png"]),
    ("ant/ant3.png,ant", "ant/ant3.png,moth", ["line 5", "ant/ant3.png", "moth"]),
    ("ant/ant3.png,ant", "ant/ant3.png,bat", ["line 5", "ant/ant3.png", "bat"]),
    ("ant/ant3.png", "ant/ant4.png", ["ant/ant4.png", "twice"]),
    ("ant,0.3", "ant,high", ["line 5", "high"]),
    ("ant,0.3", "ant,", ["line 5"]),
    ("ant,0.3", "ant,nan", ["line 5", "nan"]),
    (",score", "", ["score"]),
    ("img_path,class,score\n", "", ["img_path"]),
    (",score", ",probability", ["score"]),
], ids=["no such image", "another class", "no such class", "twice", "a word", "no score", "nan", "short header", "no header",
        "other columns"])
def test_a_ranking_file_that_does_not_fit(ranked, old, new, named):
    path = ranked / "ranking.csv"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    refused(ranked, "ranking", path, *named)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\xff\xfe", bytes(100), b"\xff\xd8" + bytes(range(256)), b"\n\n"],
                         ids=["empty", "png", "zeros", "bytes", "blank"])
def test_a_ranking_file_that_is_no_csv(place, content):
    (place / "ranking.csv").write_bytes(content)
    refused(place, "ranking", place / "ranking.csv")


def test_a_ranking_file_without_a_class(ranked):
    path = ranked / "ranking.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "moth" not in line))
    refused(ranked, "ranking", "moth", "0")


def test_a_ranking_file_that_is_a_folder(place):
    (place / "ranking.csv").mkdir()
    refused(place, "ranking", place / "ranking.csv")


# --- arguments ---------------------------------------------------------------------------------------------------

def spelt(value):
    """Names a case by its stage and its flags."""
    return value if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""


@pytest.mark.parametrize("stage, changes, named", [
    ("recover", dict(iterations=10, round_iterations=4), ["10", "4", "multiple"]),
    ("recover", dict(iterations=2, round_iterations=4), ["2", "4", "multiple"]),
    ("recover", dict(batch_size=3), ["--batch-size", "3", "4"]),
    ("recover", dict(ipc=0), ["--ipc", "'0'"]),
    ("recover", dict(iterations=0), ["--iterations"]),
    ("recover", dict(min_crop=0), ["--min-crop"]),
    ("recover", dict(min_crop=1.5), ["--min-crop", "1.5"]),
    ("recover", dict(milestone=-0.5), ["--milestone"]),
    ("recover", dict(lr="nan"), ["--lr", "nan"]),
    ("recover", dict(r_bn="inf"), ["--r-bn", "inf"]),
    ("recover", dict(jitter=-1), ["--jitter"]),
    ("recover", dict(curriculum="none"), ["--curriculum", "none"]),
    ("recover", dict(image_format="gif"), ["--image-format", "gif"]),
    ("recover", dict(init_dir=None), ["--init-dir"]),
    ("recover", dict(seed=-1), ["--seed"]),
    ("squeeze", dict(epochs=-1), ["--epochs", "-1"]),
    ("squeeze", dict(epochs="many"), ["--epochs", "many"]),
    ("squeeze", dict(lr="nan"), ["--lr", "nan"]),
    ("squeeze", dict(lr=1e30), ["--lr", "loss"]),
    ("squeeze", dict(mean=("nan", 0, 0)), ["--mean", "nan"]),
    ("squeeze", dict(batch_size=0), ["--batch-size"]),
    ("squeeze", dict(label_smoothing=2), ["--label-smoothing"]),
    ("squeeze", dict(arch="resnet19"), ["resnet19"]),
    ("squeeze", dict(arch="conv6"), ["conv6", str(INPUT)]),
    ("squeeze", dict(dataset="cifar10"), ["cifar10", "10", "3"]),
    ("ranking", dict(ipc=0), ["--ipc"]),
    ("ranking", dict(criterion="best"), ["--criterion", "best"]),
    ("ranking", dict(ranking_file=None, output_dir=None), ["--ranking-file", "--output-dir"]),
    ("validate", dict(ipc=0), ["--ipc"]),
    ("validate", dict(temperature=0), ["--temperature"]),
    ("validate", dict(min_scale=0), ["--min-scale"]),
    ("validate", dict(min_scale=0.9, max_scale=0.5), ["--min-scale", "--max-scale"]),
    ("validate", dict(rand_augment="often"), ["--rand-augment", "often"]),
    ("validate", dict(mix="blend"), ["--mix", "blend"]),
    ("validate", dict(lr=-1), ["--lr"]),
    ("validate", dict(student_arch=["conv3", "nosuchnet"]), ["nosuchnet"]),
    ("validate", dict(student_arch=["conv3", "conv6"]), ["conv6", str(INPUT)]),
    ("validate", dict(labels="hard", teacher_path=None), ["--student-arch"]),
    ("validate", dict(method=["one", "two"]), ["--method"]),
    ("validate", dict(labels="hard", teacher_path=None, student_arch="conv3", dataset="cifar10"), ["cifar10", "10", "3"]),
], ids=spelt)
def test_a_value_that_cannot_be(place, stage, changes, named):
    refused(place, stage, *named, **changes)


@pytest.mark.parametrize("stage", STAGES)
def test_flags_and_values_that_no_stage_takes(place, stage):
    refused(place, stage, "--colour", colour="red")
    refused(place, stage, "cifar11", "cifar10", dataset="cifar11")
    refused(place, stage, "--precision", precision="fp8")
    refused(place, stage, "--stem", stem="none")
    refused(place, stage, "--mean", mean=(0.5, 0.5))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("device", ["cuda:7", "toaster", "meta", ""])
def test_a_device_that_is_not_there(place, stage, device):
    assert torch.cuda.device_count() < 8
    refused(place, stage, "--device", device, device=device)


@pytest.mark.parametrize("numbers", [(0, 0, 0), (0.5, -0.5, 0.5), ("nan", 1, 1)], ids=["zero", "negative", "nan"])
def test_a_spread_that_cannot_be_divided_by(place, numbers):
    refused(place, "squeeze", "--std", std=numbers)


@pytest.mark.parametrize("arch", ["alexnet", "vit_b_16"])
def test_a_network_that_takes_no_images_so_small(place, arch):
    """AlexNet pools 14 pixels away; ViT-B/16 cannot cut them into patches of 16."""
    refused(place, "squeeze", arch, INPUT, arch=arch, epochs=1)


@pytest.mark.parametrize("stage", ["squeeze", "validate"])
def test_batches_of_a_single_image(place, stage):
    """A single image has no statistics for BatchNorm: without this nothing would be trained, and no one told."""
    refused(place, stage, "--batch-size", batch_size=1)


@pytest.mark.parametrize("env", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "first", "WORLD_SIZE": "2"}], ids=["beyond", "word"])
def test_a_rank_that_cannot_be(place, env):
    refused(place, "recover", "RANK", env["RANK"], env=env)


# --- what is there already ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [dict(iterations=4), dict(seed=1), dict(ipc=2), dict(r_bn=0.1), dict(image_format="jpg"),
                                     dict(batch_by="index"), dict(init="noise", ipc=4)], ids=lambda changes: next(iter(changes)))
def test_recover_into_another_runs_folder(place, changes):
    place.works("recover")
    refused(place, "recover", place.syn, next(iter(changes)), "--overwrite", **changes)


def test_recover_from_other_images_or_by_another_teacher_into_the_same_folder(place):
    place.works("recover")
    draw(place.init / "ant", (1, 2, 3), 1, "another ant")
    refused(place, "recover", place.syn, "init", "--overwrite")
    place.works("recover", overwrite=True)
    place.works("squeeze", seed=1)
    refused(place, "recover", place.syn, "teacher", "--overwrite", teacher_path=place / "squeezed.pth")


@pytest.mark.parametrize("changes", [dict(criterion="top"), dict(ipc=3)], ids=lambda changes: next(iter(changes)))
def test_ranking_into_another_runs_folder(place, changes):
    place.works("ranking")
    refused(place, "ranking", place / "selected", next(iter(changes)), "--overwrite", **changes)
    place.works("ranking", **changes, overwrite=True)
    assert len(images(place / "selected")) == 3 * changes.get("ipc", 4)


@pytest.mark.parametrize("changes", [dict(epochs=5), dict(lr=0.01), dict(seed=1), dict(arch="conv4", input_size=16)],
                         ids=lambda changes: next(iter(changes)))
def test_squeeze_onto_another_runs_checkpoint(place, changes):
    place.works("squeeze", epochs=1)
    refused(place, "squeeze", place / "squeezed.pth", next(iter(changes)), "--overwrite", **{"epochs": 1, **changes})


def test_squeeze_onto_a_checkpoint_of_others_or_a_folder(place):
    torch.save({"state_dict": weights_of(place)}, place / "squeezed.pth")
    refused(place, "squeeze", place / "squeezed.pth", "--overwrite")
    refused(place, "squeeze", place.init, "folder", output=place.init)


@pytest.mark.parametrize("overwrite", [None, True], ids=["", "overwrite"])
@pytest.mark.parametrize("stage, flag", [("ranking", "output_dir"), ("recover", "syn_dir")])
def test_a_users_own_files_are_never_touched(place, stage, flag, overwrite):
    mine = place / "mine"
    (mine / "thesis").mkdir(parents=True)
    (mine / "thesis" / "chapter1.txt").write_text("years of work")
    line = {"ranking_file": None} if stage == "ranking" else {}
    refused(place, stage, mine, **{flag: mine}, overwrite=overwrite, **line)


@pytest.mark.parametrize("stage, flag, folder", [("ranking", "output_dir", "train"), ("recover", "syn_dir", "init")])
def test_a_stage_does_not_write_over_what_it_reads(place, stage, flag, folder):
    """Even where that is the output of another stage's run, and even if told to overwrite."""
    place.works("ranking", output_dir=place / "selection")
    shutil.rmtree(place / folder)
    (place / "selection").rename(place / folder)
    line = {"ipc": 2, "ranking_file": None} if stage == "ranking" else {}
    refused(place, stage, place / folder, **{flag: place / folder}, overwrite=True, **line)


@pytest.mark.parametrize("stage, flag", [("squeeze", "output"), ("ranking", "output_dir"), ("ranking", "ranking_file"),
                                         ("recover", "syn_dir"), ("validate", "output_dir")])
def test_an_output_below_a_file(place, stage, flag):
    (place / "notes.txt").write_text("a file, no folder")
    outcome = refused(place, stage, place / "notes.txt", **{flag: place / "notes.txt" / "out.pth"})
    assert "out.pth" in outcome or "folder" in outcome


@pytest.mark.parametrize("stage, flag", [("ranking", "output_dir"), ("recover", "syn_dir"), ("validate", "output_dir")])
def test_an_output_folder_that_is_a_file(place, stage, flag):
    (place / "notes.txt").write_text("a file, no folder")
    line = {"ranking_file": None} if stage == "ranking" else {}
    refused(place, stage, place / "notes.txt", **{flag: place / "notes.txt"}, **line)


@pytest.mark.parametrize("sheet", ["sheet.docx", "init", "notes.txt/sheet.png"])
def test_a_contact_sheet_that_cannot_be_written_is_refused_before_the_work(place, sheet):
    (place / "notes.txt").write_text("a file, no folder")
    refused(place, "recover", place / sheet, contact_sheet=place / sheet)


@pytest.mark.parametrize("stage, folder", [("ranking", "selected"), ("recover", "syn")])
def test_a_manifest_that_is_damaged(place, stage, folder):
    place.works(stage)
    for content in (b"", b"{", b"\xff\xfe", b"[]", b'{"settings": 1}', b"null"):
        (place / folder / "manifest.json").write_bytes(content)
        refused(place, stage, place / folder / "manifest.json")


def test_a_table_of_results_that_is_not_ours_is_refused_before_any_training(place):
    (place / "measured").mkdir()
    for content in ("name,accuracy\nmine,99\n", "", "dataset,method,ipc\n"):
        (place / "measured" / "results.csv").write_text(content)
        refused(place, "validate", place / "measured" / "results.csv")
    (place / "measured" / "results.csv").write_bytes(b"\xff\xfe\x00")
    refused(place, "validate", place / "measured" / "results.csv")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_result_that_is_damaged(place, content):
    place.works("validate", epochs=1)
    [path] = (place / "measured" / "results").glob("*.json")
    path.write_text(content)
    refused(place, "validate", path, epochs=1)


# --- links in a folder of images ------------------------------------------------------------------------------------

def test_links_to_images_are_followed(place):
    elsewhere = place / "elsewhere"
    shutil.copytree(place.train / "ant", elsewhere)
    count = len(ImageFolder(place.train, "--train-dir"))
    (place.train / "ant" / "more").symlink_to(elsewhere)
    assert len(ImageFolder(place.train, "--train-dir")) == count + 7


@pytest.mark.parametrize("link, target, words", [
    ("ant/loop", "..", "leads back"), ("ant/loop", ".", "leads back"), ("ant/deep/loop", "../..", "leads back"),
    ("ant/loop", "../../train", "leads back"), ("bee", "nowhere", "nowhere"), ("bee", "bee", "nowhere")])
def test_links_that_lead_nowhere_or_back(place, link, target, words):
    (place.train / link).parent.mkdir(exist_ok=True)
    (place.train / link).symlink_to(target)
    outcome = place.run("ranking")
    assert outcome.code == 2 and words in outcome.err and link in outcome.err and len(outcome.err.splitlines()) == 1
