"""Readers of published layouts: each image arrives whole, in its class, in its published order."""

import gzip
import io
import lzma
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from utils.data.datasets import DATASETS, DataSet
from utils.data.layouts import LAYOUTS, read_idx
from utils.run.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FASHION_GZ = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
TEN = DataSet(10, 32)


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def cifar_file(path, **values):
    write(path, pickle.dumps({name.encode(): value for name, value in values.items()}, protocol=2))


def cifar_data(values):
    """Flat images: the red one is all 7, the green and the blue one all `value`."""
    data = np.repeat(np.asarray(values, np.uint8)[:, None], 3072, axis=1)
    data[:, :1024] = 7
    return data


@pytest.fixture
def cifar10(tmp_path):
    cifar_file(tmp_path / "batches.meta", label_names=[b"c%d" % k for k in range(10)])
    for number in range(1, 6):
        values = [10 * number + k for k in range(4)]
        cifar_file(tmp_path / f"data_batch_{number}", data=cifar_data(values), labels=[2 * number - 2, 9, 9, 0])
    cifar_file(tmp_path / "test_batch", data=cifar_data(range(10)), labels=list(range(10)))
    return tmp_path


def test_cifar10_batches_join_in_their_order(cifar10):
    splits = LAYOUTS["cifar"](cifar10, TEN)
    assert [image[0, 0].tolist() for image in splits["train"]["c0"]] == [
        [7, value, value] for value in (10, 13, 23, 33, 43, 53)
    ]
    assert [image[0, 0, 1] for image in splits["train"]["c9"]] == [11, 12, 21, 22, 31, 32, 41, 42, 51, 52]
    assert len(splits["train"]["c1"]) == 0 and len(splits["train"]["c2"]) == 1
    assert splits["val"]["c4"][0].shape == (32, 32, 3) and splits["val"]["c4"][0][5, 9].tolist() == [7, 4, 4]


def test_cifar_rows_are_rows(tmp_path):
    plane = np.arange(1024).reshape(32, 32) % 251
    data = np.concatenate([plane.ravel(), plane.T.ravel(), np.zeros(1024)]).astype(np.uint8)[None]
    cifar_file(tmp_path / "meta", fine_label_names=[b"only"])
    for name in "train", "test":
        cifar_file(tmp_path / name, data=data, fine_labels=[0])
    (image,) = LAYOUTS["cifar"](tmp_path, DataSet(1, 32))["val"]["only"]
    assert (image[..., 0] == plane).all() and (image[..., 1] == plane.T).all() and not image[..., 2].any()


def test_cifar100_takes_the_fine_labels(tmp_path):
    cifar_file(tmp_path / "meta", fine_label_names=[b"apple", b"bear"], coarse_label_names=[b"fruit"])
    for name in "train", "test":
        cifar_file(tmp_path / name, data=cifar_data([1, 2, 3]), fine_labels=[1, 0, 1], coarse_labels=[0, 0, 0])
    train = LAYOUTS["cifar"](tmp_path, DataSet(2, 32))["train"]
    assert {name: [image[0, 0, 2] for image in images] for name, images in train.items()} == {
        "apple": [2],
        "bear": [1, 3],
    }


def test_cifar_pickle_that_holds_code_is_not_run(cifar10):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(cifar10 / "ran"),)

    write(cifar10 / "test_batch", pickle.dumps(Code(), protocol=2))
    with pytest.raises(UserError, match="test_batch.*mkdir"):
        LAYOUTS["cifar"](cifar10, TEN)
    assert not (cifar10 / "ran").exists()


def test_cifar_that_is_incomplete(cifar10):
    write(cifar10 / "data_batch_3", (cifar10 / "data_batch_3").read_bytes()[:-100])
    with pytest.raises(UserError, match="data_batch_3 cannot be read"):
        LAYOUTS["cifar"](cifar10, TEN)
    (cifar10 / "data_batch_3").unlink()
    with pytest.raises(UserError, match="lacks data_batch_3"):
        LAYOUTS["cifar"](cifar10, TEN)


@pytest.mark.parametrize("content", [{b"labels": [0]}, {}, [1, 2]])
def test_cifar_that_lacks_an_entry(cifar10, content):
    write(cifar10 / "test_batch", pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="test_batch cannot be read as a batch of CIFAR: it lacks data"):
        LAYOUTS["cifar"](cifar10, TEN)
    write(cifar10 / "batches.meta", pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="batches.meta cannot be read as a batch of CIFAR: it lacks label_names"):
        LAYOUTS["cifar"](cifar10, TEN)


def test_labels_without_a_name_are_refused(cifar10):
    cifar_file(cifar10 / "test_batch", data=cifar_data([0]), labels=[10])
    with pytest.raises(UserError, match="1 images, 1 labels and 10 classes do not fit"):
        LAYOUTS["cifar"](cifar10, TEN)


def test_tiny_imagenet_takes_validation_classes_from_the_annotations(tmp_path):
    wnids = ["n01", "n02", "n03"]
    for wnid in wnids:
        write(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        write(tmp_path / "train" / wnid / f"{wnid}_boxes.txt")
    images = [write(tmp_path / "val" / "images" / f"val_{k}.JPEG") for k in range(4)]
    annotations = "".join(f"val_{k}.JPEG\t{wnids[2 - k % 3]}\t0\t0\t1\t1\n" for k in range(4))
    write(tmp_path / "val" / "val_annotations.txt", annotations.encode())
    assert LAYOUTS["tiny_imagenet"](tmp_path, DataSet(3, 64)) == {
        "train": {wnid: tmp_path / "train" / wnid / "images" for wnid in wnids},
        "val": {"n03": [images[0], images[3]], "n02": [images[1]], "n01": [images[2]]},
    }
    images[1].unlink()
    with pytest.raises(UserError, match="val_1.JPEG is missing"):
        LAYOUTS["tiny_imagenet"](tmp_path, DataSet(3, 64))


@pytest.mark.parametrize("line", [b"", b"  ", b"val_0.JPEG", b"val_0.JPEG\t", b"\tn01", b"\xff\xfe"])
def test_a_line_that_annotates_no_image_is_named(tmp_path, line):
    write(tmp_path / "train" / "n01" / "images" / "n01_0.JPEG")
    write(tmp_path / "val" / "images" / "val_0.JPEG")
    write(tmp_path / "val" / "val_annotations.txt", b"val_0.JPEG\tn01\t0\t0\t1\t1\n" + line + b"\n")
    with pytest.raises(UserError, match=f"{tmp_path}/val/val_annotations.txt, line 2: "):
        LAYOUTS["tiny_imagenet"](tmp_path, DataSet(1, 64))


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """20 training and 10 test images; image k is all k, and of class k % 10."""
    for prefix, count in ("train", 20), ("t10k", 10):
        values = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(values[:, None, None], (count, 28, 28))
        write(tmp_path / f"{prefix}-images-idx3-ubyte.gz", gzip.compress(idx(images)))
        write(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", gzip.compress(idx(values % 10)))
    return tmp_path


def test_mnist_images_are_framed_with_zeros(mnist):
    train = LAYOUTS["mnist"](mnist, DATASETS["fashion_mnist"])["train"]
    first, second = train["Ankle_boot"]  # label 9
    assert first.shape == (32, 32, 3) and first[2:30, 2:30].min() == first.max() == 9
    assert second[2:30, 2:30].min() == second.max() == 19
    assert second.sum() == 19 * 28 * 28 * 3  # the frame is zero


def test_mnist_classes_without_names_are_their_numbers(mnist):
    splits = LAYOUTS["mnist"](mnist, TEN)
    assert {name: [image.max() for image in images] for name, images in splits["val"].items()} == {
        str(k): [k] for k in range(10)
    }


def test_mnist_files_need_not_be_gzipped(mnist):
    for path in list(mnist.iterdir()):
        write(path.with_suffix(""), gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(LAYOUTS["mnist"](mnist, TEN)["train"]["3"]) == 2


def test_mnist_file_that_is_damaged(mnist):
    path = mnist / "t10k-images-idx3-ubyte.gz"
    write(path, path.read_bytes()[:-10])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte.gz is damaged"):
        LAYOUTS["mnist"](mnist, TEN)


@pytest.mark.parametrize("test", ["val", "test"])
def test_image_folder_takes_val_or_test(tmp_path, test):
    for split, name in ("train", "b"), ("train", "a"), (test, "a"), (test, "b"):
        write(tmp_path / split / name / "1.png")
    assert LAYOUTS["image_folder"](tmp_path, DataSet(2, 32)) == {
        "train": {"a": tmp_path / "train" / "a", "b": tmp_path / "train" / "b"},
        "val": {"a": tmp_path / test / "a", "b": tmp_path / test / "b"},
    }


def test_image_folder_of_a_part_takes_its_classes_only(tmp_path):
    for split in "train", "val":
        for name in "abc":
            write(tmp_path / split / name / "1.JPEG")
    splits = LAYOUTS["image_folder"](tmp_path, DataSet(2, 32, only=("c", "a")))
    assert set(splits["train"]) == set(splits["val"]) == {"a", "c"}
    with pytest.raises(UserError, match="lacks 1 of the 2 classes, the first is d"):
        LAYOUTS["image_folder"](tmp_path, DataSet(2, 32, only=("a", "d")))


def test_image_folder_with_an_empty_class(tmp_path):
    for split in "train", "val":
        write(tmp_path / split / "a" / "1.png")
    write(tmp_path / "train" / "b" / "readme.txt")
    with pytest.raises(UserError, match="train/b holds no images"):
        LAYOUTS["image_folder"](tmp_path, DataSet(2, 32))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_laid_out_otherwise_is_left_to_the_other_readers(tmp_path, name):
    write(tmp_path / "readme.txt")
    assert LAYOUTS[name](tmp_path, DATASETS["fashion_mnist_cut"]) is None


def test_array_holds_training_images_first(tmp_path):
    images = np.arange(2 * 5, dtype=np.uint8).reshape(2, 5)[..., None, None] + np.zeros((28, 28), np.uint8)
    file = io.BytesIO()
    np.save(file, images)
    write(tmp_path / "toy.npy.xz", lzma.compress(file.getvalue()))
    dataset = DataSet(2, 32, source="toy.npy.xz", images=(6, 4), class_names=("cat", "dog"))
    splits = LAYOUTS["array"](tmp_path, dataset)
    shown = {split: {name: [x[9, 9].tolist() for x in xs] for name, xs in splits[split].items()} for split in splits}
    assert shown == {
        "train": {"cat": [[0] * 3, [1] * 3, [2] * 3], "dog": [[5] * 3, [6] * 3, [7] * 3]},
        "val": {"cat": [[3] * 3, [4] * 3], "dog": [[8] * 3, [9] * 3]},
    }
    assert splits["val"]["dog"][1].sum() == 9 * 28 * 28 * 3  # the frame is zero


@pytest.mark.parametrize(
    "content",
    [b"", b"no xz", lzma.compress(b"no array"), lzma.compress(b"x" * 99)[:-20]],
    ids=["empty", "no xz", "no array", "cut"],
)
def test_array_that_is_damaged(tmp_path, content):
    write(tmp_path / "toy.npy.xz", content)
    with pytest.raises(UserError, match="toy.npy.xz is damaged"):
        LAYOUTS["array"](tmp_path, DataSet(2, 32, source="toy.npy.xz", images=(6, 4)))


@pytest.mark.skipif(not FASHION_GZ.is_dir(), reason="Fashion-MNIST's original files are not on this machine")
def test_embedded_cut_is_what_the_original_holds():
    path = ROOT / "scripts" / "embedded" / "fashion_mnist_cut.npy.xz"
    images = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    for prefix, part in ("train", images[:, :1000]), ("t10k", images[:, 1000:]):
        original = read_idx(FASHION_GZ, f"{prefix}-images-idx3-ubyte")
        labels = read_idx(FASHION_GZ, f"{prefix}-labels-idx1-ubyte")
        for k in range(10):
            assert (original[labels == k][: part.shape[1]] == part[k]).all()
