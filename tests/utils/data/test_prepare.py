"""python -m utils.data.prepare: archives, folders and downloads become train/ and val/, or one line says why not."""

import io
import lzma
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from utils.data import prepare
from utils.data.datasets import DATASETS, IMAGENET_MEAN, DataSet, known
from utils.data.layouts import LAYOUTS
from utils.run.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
IMAGENETTE = sorted(DATASETS["imagenette"].only)
TEN = [f"c{k}" for k in range(10)]


def png(value=0):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def image_folder(root, classes, test="val", per_class=1):
    for split in "train", test:
        for name in classes:
            for k in range(per_class):
                put(root / split / name / f"{k}.png")
    return root


def tar(folder, path):
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def run(*words):
    return prepare.run([str(word) for word in words])


def files(folder):
    """Every file below `folder`, also in folders that are links."""
    found = os.walk(folder, followlinks=True)
    return sorted((Path(root) / name).relative_to(folder).as_posix() for root, _, names in found for name in names)


def refused(capsys, output, *words):
    """Run what has to be refused; the one line that says why."""
    assert run(*words, "--output", output) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert not (output / "train").exists() and not output.with_name(f".{output.name}.partial").exists()
    return error


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet with the classes of ImageNette and ImageNet-100, and one more."""
    return image_folder(tmp_path / "ImageNet", [*IMAGENETTE, *DATASETS["imagenet100"].only, "n99999999"])


@pytest.fixture
def cifar10(tmp_path):
    """CIFAR-10's python version with 20 training and 10 test images."""
    folder = tmp_path / "in" / "cifar-10-batches-py"
    contents = {f"data_batch_{k}": [2 * k - 2, 2 * k - 1, 9, 0] for k in range(1, 6)} | {"test_batch": list(range(10))}
    put(folder / "batches.meta", pickle.dumps({b"label_names": [name.encode() for name in TEN]}, protocol=2))
    for name, labels in contents.items():
        data = np.repeat(np.arange(len(labels), dtype=np.uint8)[:, None], 3072, axis=1)
        put(folder / name, pickle.dumps({b"data": data, b"labels": labels}, protocol=2))
    return folder


def test_a_data_set_is_one_entry(tmp_path, monkeypatch, capsys):
    source = image_folder(tmp_path / "toy", ["cat", "dog"], test="test", per_class=3)
    monkeypatch.setitem(DATASETS, "toy", DataSet(classes=2, input_size=48, squeeze_epochs=7, images=(8, 6)))
    out = tmp_path / "out"
    assert run("toy", "--source", source, "--output", out) == 0
    assert files(out) == sorted(
        f"{s}/{name}/{k}.png" for s in ("train", "val") for name in ("cat", "dog") for k in "012"
    )
    shown = capsys.readouterr().out
    assert f"TRAIN_DIR={out / 'train'}    2 classes, 6 images" in shown
    assert "toy as published has 8 training and 6 test images" in shown
    facts = known("toy")
    assert (facts.classes, facts.input_size, facts.squeeze_epochs, facts.mean) == (2, 48, 7, IMAGENET_MEAN)
    # Without a source there is nothing to download, and no page to name.
    assert "see" not in refused(capsys, tmp_path / "other", "toy")
    with pytest.raises(UserError, match="plaything.*toy"):
        known("plaything")


@pytest.mark.parametrize("name", DATASETS)
def test_every_entry_names_what_there_is(name):
    dataset = DATASETS[name]
    assert set(dataset.layouts) <= set(LAYOUTS)
    assert not dataset.torchvision or hasattr(torchvision.datasets, dataset.torchvision.name)
    for names in dataset.only, dataset.class_names:
        assert len(set(names)) == len(names) and len(names) in (0, dataset.classes)


def test_imagenette_and_imagewoof_are_disjoint():
    assert not set(DATASETS["imagenette"].only) & set(DATASETS["imagewoof"].only)


def test_tiny_imagenet_zip(tmp_path, capsys):
    wnids = [f"n{k:08d}" for k in range(200)]
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for k, wnid in enumerate(wnids):
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_0.JPEG", png())
            archive.writestr(f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt", "")
            archive.writestr(f"tiny-imagenet-200/val/images/val_{k}.JPEG", png(k))
        archive.writestr("tiny-imagenet-200/test/images/test_0.JPEG", png())
        archive.writestr(
            "tiny-imagenet-200/val/val_annotations.txt",
            "".join(f"val_{199 - k}.JPEG\t{wnid}\t0\t0\t1\t1\n" for k, wnid in enumerate(wnids)),
        )
    out = tmp_path / "tiny"
    assert run("tinyimagenet", "--source", tmp_path / "tiny.zip", "--output", out) == 0
    assert files(out) == sorted(
        [f"train/{wnid}/{wnid}_0.JPEG" for wnid in wnids]
        + [f"val/{wnid}/val_{199 - k}.JPEG" for k, wnid in enumerate(wnids)]
    )
    assert "200 classes, 200 images" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["archive", "folder that holds the archive", "unpacked"])
def test_cifar_batches(tmp_path, cifar10, given):
    source = cifar10
    if given != "unpacked":
        archive = tar(cifar10, tmp_path / "in" / "cifar-10-python.tar.gz")
        shutil.rmtree(cifar10)
        source = archive if given == "archive" else archive.parent
    out = tmp_path / "out"
    assert run("cifar10", "--source", source, "--output", out) == 0
    # Class 0 holds the first image of batch 1, then the fourth of each batch, in that order.
    images = [np.asarray(Image.open(path)) for path in sorted((out / "train" / "c0").iterdir())]
    assert [image[31, 0].tolist() for image in images] == [[0] * 3] + [[3] * 3] * 5
    assert images[0].shape == (32, 32, 3)
    assert files(out / "val") == [f"c{k}/0000.png" for k in range(10)]


def test_image_folder_archive_with_test_split(tmp_path):
    archive = tar(image_folder(tmp_path / "cifar10", TEN, test="test", per_class=2), tmp_path / "c.tar.gz")
    out = tmp_path / "out"
    assert run("cifar10", "--source", archive, "--output", out) == 0
    assert files(out) == sorted(f"{split}/{name}/{k}.png" for split in ("train", "val") for name in TEN for k in "01")
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("name", ["imagenette", "imagenet100"])
def test_part_of_imagenet_is_linked(tmp_path, imagenet, name):
    out = tmp_path / "out"
    assert run(name, "--source", imagenet, "--output", out) == 0
    for split in "train", "val":
        folders = list((out / split).iterdir())
        assert {folder.name for folder in folders} == set(DATASETS[name].only)
        assert all(folder.is_symlink() and (folder / "0.png").is_file() for folder in folders)


def test_finished_output_is_left_alone(tmp_path, imagenet, capsys):
    out = tmp_path / "out"
    assert run("imagenette", "--source", imagenet, "--output", out) == 0
    before = files(out)
    assert run("imagenette", "--source", tmp_path / "nothing", "--output", out) == 0
    assert "already" in capsys.readouterr().out and files(out) == before
    assert run("imagewoof", "--output", image_folder(tmp_path / "two", ["a", "b"])) == 2
    assert "2 classes" in capsys.readouterr().err


def test_leftover_of_a_killed_run_is_no_output(tmp_path, imagenet):
    put(tmp_path / ".out.partial" / "train" / "half" / "0.png")
    assert run("imagenette", "--source", imagenet, "--output", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "train" / "half").exists() and not (tmp_path / ".out.partial").exists()


def test_another_data_set_as_source(tmp_path, capsys):
    out = tmp_path / "out"
    assert "no such file" in refused(capsys, out, "cifar10", "--source", tmp_path / "nothing")
    assert "3 classes" in refused(capsys, out, "cifar10", "--source", image_folder(tmp_path / "three", "abc"))
    put(tmp_path / "other" / "readme.txt", b"")
    assert "cifar-10-python.tar.gz" in refused(capsys, out, "cifar10", "--source", tmp_path / "other")


def test_class_that_is_missing(tmp_path, imagenet, capsys):
    image_folder(tmp_path / "half", TEN)
    shutil.rmtree(tmp_path / "half" / "val" / "c3")
    assert "c3 is in train only" in refused(capsys, tmp_path / "out", "cifar10", "--source", tmp_path / "half")
    for split in "train", "val":
        shutil.rmtree(imagenet / split / IMAGENETTE[4])
    assert f"lacks 1 of the 10 classes, the first is {IMAGENETTE[4]}" in refused(
        capsys, tmp_path / "out", "imagenette", "--source", imagenet
    )


def test_output_that_holds_files_of_the_user(tmp_path, imagenet, capsys):
    put(tmp_path / "taken" / "mine.txt", b"mine")
    assert "no finished data set" in refused(capsys, tmp_path / "taken", "imagenette", "--source", imagenet)
    assert (tmp_path / "taken" / "mine.txt").read_bytes() == b"mine"


def test_flat_validation_images(tmp_path, imagenet, capsys):
    shutil.rmtree(imagenet / "val")
    put(imagenet / "val" / "ILSVRC2012_val_00000001.JPEG")
    for name in "imagenet1k", "imagenette":
        assert "valprep" in refused(capsys, tmp_path / "out", name, "--source", imagenet)


def test_damaged_archives(tmp_path, cifar10, capsys):
    whole = tar(cifar10, tmp_path / "whole.tar.gz").read_bytes()
    for name, data in [("cut.tar.gz", whole[: len(whole) // 2]), ("noise.tar.gz", b"noise" * 100), ("empty.zip", b"")]:
        put(tmp_path / name, data)
        error = refused(capsys, tmp_path / "out", "cifar10", "--source", tmp_path / name)
        assert name in error and "fetch it again" in error


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_that_leads_out_of_its_folder(tmp_path, capsys, kind):
    archive = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("../../../escaped.txt", "x")
    else:
        with tarfile.open(archive, "w") as file:
            file.addfile(tarfile.TarInfo("../../../escaped.txt"))
    assert "unsafe" in refused(capsys, tmp_path / "a" / "b" / "out", "cifar10", "--source", archive)
    assert not list(tmp_path.rglob("escaped.txt"))


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.torchvision])
def test_no_network(tmp_path, capsys, monkeypatch, name):
    def down(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", down)
    error = refused(capsys, tmp_path / "out", name)
    assert DATASETS[name].source in error and "https://" in error and "--source" in error


def test_download_is_torchvisions_with_the_options_of_the_entry(tmp_path, monkeypatch):
    def imagenette(root, download, size):
        assert download
        image_folder(Path(root) / f"imagenette2-{size[:3]}", IMAGENETTE)

    monkeypatch.setattr(torchvision.datasets, "Imagenette", imagenette)
    assert run("imagenette", "--output", tmp_path / "out") == 0
    assert files(tmp_path / "out") == sorted(
        f"{split}/{name}/0.png" for split in ("train", "val") for name in IMAGENETTE
    )
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["tinyimagenet", "imagewoof", "imagenet100", "imagenet1k"])
def test_what_cannot_be_downloaded(tmp_path, capsys, name):
    error = refused(capsys, tmp_path / "out", name)
    assert DATASETS[name].source in error and DATASETS[name].home in error and "--source" in error


def test_unknown_name_is_one_line(tmp_path, capsys):
    error = refused(capsys, tmp_path / "out", "cifar")
    assert "'cifar'" in error and "fashion_mnist_cut" in error


@pytest.mark.slow
def test_embedded_cut(tmp_path):
    path = ROOT / "scripts" / "embedded" / "fashion_mnist_cut.npy.xz"
    assert path.stat().st_size <= 6_000_000
    images = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    labels = "T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot".split()  # 0 to 9
    out = tmp_path / "out"
    assert run("fashion_mnist_cut", "--output", out) == 0
    for split, count, first in ("train", 1000, 0), ("val", 200, 1000):
        assert {folder.name for folder in (out / split).iterdir()} == set(labels)
        for k, name in enumerate(labels):
            paths = sorted((out / split / name).iterdir())
            assert [path.name for path in paths] == [f"{i:04d}.png" for i in range(count)]
            for i in 0, count - 1:
                pixels = np.asarray(Image.open(paths[i]))
                assert pixels.shape == (32, 32, 3)
                assert (pixels[2:30, 2:30] == images[k, first + i][..., None]).all()


def test_script_runs_from_any_folder(tmp_path, imagenet):
    """Also from one with a package `utils` of its own, and without the seconds that PyTorch takes."""
    if sys.version_info < (3, 11):
        pytest.skip("this Python has no PYTHONSAFEPATH")
    put(tmp_path / "utils" / "__init__.py", b"raise SystemExit('the wrong utils')")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "prepare_data.sh", "imagenette", "--source", "ImageNet", "--output", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON_BIN": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(folder.name for folder in (tmp_path / "out" / "val").iterdir()) == IMAGENETTE


def test_preparing_from_a_source_loads_no_pytorch():
    code = "import sys, utils.data.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_link_that_leads_to_itself(tmp_path, capsys):
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    assert "no such file or folder: " in refused(capsys, tmp_path / "out", "cifar10", "--source", tmp_path / "there")
    assert run("cifar10", "--output", tmp_path / "there") == 2
    assert "is a link that leads to itself" in capsys.readouterr().err


def test_a_link_to_an_empty_folder_stays_one(tmp_path, imagenet):
    """To a disk with room, for one."""
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "big")
    assert run("imagenette", "--source", imagenet, "--output", tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "big" / "train").is_dir()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
