"""Sets in the forms in which other projects publish them: DC, DM, MTT, DATM, FRePo, RCIG, RaT-BPTT."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.image_folder import ImageFolder
from utils.data.whitening import unwhitened

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])


def normalised():
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((torch.from_numpy(PIXELS) / 255 - mean) / std).requires_grad_()


def scores():
    """Learnt labels: sums are not 1, and some are negative."""
    return torch.nn.functional.one_hot(torch.from_numpy(LABELS)).float() - 1 / 3 + 0.1 * torch.rand(6, 3)


def convert(place, *words):
    return place.start("utils.from_tensors", *words)


def check(folder, within=0, names=("0", "1", "2")):
    """`within` of 255: what normalisation in fp32 may round otherwise."""
    for label, name in enumerate(names):
        files = sorted((folder / name).iterdir())
        assert len(files) == 2
        for file, index in zip(files, np.flatnonzero(LABELS == label)):
            found = np.asarray(Image.open(file)).astype(int)
            assert np.abs(found - PIXELS[index].transpose(1, 2, 0)).max() <= within


NORMALISED = ["--mean", *MEAN, "--std", *STD]


@pytest.mark.parametrize("names", [("data", "label"), ("x", "y"), ("x_proto", "y_proto"), ("images", "labels")])
@pytest.mark.parametrize("learnt", [False, True])
def test_a_dict_of_images_and_labels(place, names, learnt):
    labels = scores() if learnt else torch.from_numpy(LABELS)
    torch.save({names[0]: normalised(), names[1]: labels, "lr": torch.tensor(0.01)}, place / "s.pt")
    outcome = convert(place, place / "s.pt", place / "set", *NORMALISED)
    assert outcome.code == 0, outcome.err
    check(place / "set")
    assert outcome.out.count("learnt scores") == learnt


def test_labels_beside_the_images_and_a_rate_beside_them(place):
    """MTT and DATM: images_best.pt, labels_best.pt, lr_best.pt."""
    torch.save(normalised().detach(), place / "images_best.pt")
    torch.save(scores(), place / "labels_best.pt")
    torch.save(0.0123, place / "lr_best.pt")
    outcome = convert(place, place / "images_best.pt", place / "set", *NORMALISED)
    assert outcome.code == 0 and f"labels: {place / 'labels_best.pt'}" in outcome.out
    check(place / "set")


def test_images_out_of_whitening_have_the_same_labels_beside_them(place):
    torch.save(torch.from_numpy(PIXELS) / 255, place / "images_zca_best.pt")
    torch.save(torch.from_numpy(LABELS), place / "labels_best.pt")
    assert convert(place, place / "images_zca_best.pt", place / "set").code == 0
    check(place / "set")


def test_a_list_of_experiments(place):
    """DC and DM: {"data": [[images, labels], ...], "accs_all_exps": {...}}, accuracies in NumPy's numbers."""
    first, second = [normalised().detach(), torch.from_numpy(LABELS)], [torch.zeros(6, 3, 8, 8), torch.zeros(6).long()]
    accuracies = {"ConvNet": [np.float64(0.44)]}
    torch.save({"data": [first, second], "accs_all_exps": accuracies}, place / "res_DC_CIFAR10_ConvNet_2ipc.pt")
    outcome = convert(place, place / "res_DC_CIFAR10_ConvNet_2ipc.pt", place / "set", *NORMALISED)
    assert outcome.code == 0, outcome.err
    assert "holds 2 sets; the first is taken" in outcome.out
    check(place / "set")


def test_arrays_of_numpy_in_a_file_of_torch(place):
    torch.save({"images": PIXELS, "labels": LABELS}, place / "s.pt")
    assert convert(place, place / "s.pt", place / "set").code == 0
    check(place / "set")


def test_npz_with_the_channels_last_and_one_column_of_labels(place):
    images = normalised().detach().numpy().transpose(0, 2, 3, 1)
    np.savez(place / "s.npz", image=images, label=LABELS[:, None].astype(np.float32))
    outcome = convert(place, place / "s.npz", place / "set", *NORMALISED)
    assert outcome.code == 0 and "learnt scores" not in outcome.out, outcome.err
    check(place / "set")


def test_a_class_that_no_learnt_label_chooses_is_named(place):
    torch.save({"images": torch.from_numpy(PIXELS), "labels": torch.eye(4)[LABELS]}, place / "s.pt")
    outcome = convert(place, place / "s.pt", place / "set")
    assert outcome.code == 0 and "no image has the class 3" in outcome.out
    assert "learnt scores" not in outcome.out
    check(place / "set")


# --- whitening -------------------------------------------------------------------------------------------------------


@pytest.fixture
def training(place):
    """40 images of 8 pixels with correlated pixels, and their whitening as kornia defines it, in NumPy."""
    random, rows = np.random.default_rng(1), []
    for number in range(40):
        small = random.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(small).resize((8, 8), Image.Resampling.BILINEAR)
        (place / "real" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        image.save(place / "real" / str(number % 2) / f"{number:02d}.png")
        rows.append(np.asarray(image).transpose(2, 0, 1).ravel() / 255)
    rows = np.stack(rows)
    mean = rows.mean(0)
    vectors, values, _ = np.linalg.svd((rows - mean).T @ (rows - mean) / (len(rows) - 1))
    place.whiten = lambda x: (x - mean) @ (vectors / np.sqrt(values + 0.1)) @ vectors.T
    place.rows = rows
    return place


def whitened(place, pixels=PIXELS):
    return place.whiten(pixels.reshape(len(pixels), -1) / 255).reshape(pixels.shape)


def test_whitened_images_come_back(training):
    torch.save(
        {"images": torch.from_numpy(whitened(training)).float(), "labels": torch.from_numpy(LABELS)}, training / "s.pt"
    )
    outcome = convert(training, training / "s.pt", training / "set")
    assert outcome.code == 2 and "--zca where they are whitened" in outcome.err
    outcome = convert(training, training / "s.pt", training / "set", "--zca", training / "real")
    assert outcome.code == 0, outcome.err
    check(training / "set", within=1)


def test_it_is_the_whitening_of_kornia(training):
    kornia = pytest.importorskip("kornia")
    zca = kornia.enhance.ZCAWhitening(eps=0.1).fit(torch.from_numpy(training.rows).view(-1, 3, 8, 8))
    theirs = zca(torch.from_numpy(PIXELS).double() / 255)
    found = unwhitened(theirs.numpy().transpose(0, 2, 3, 1), ImageFolder(training / "real", "--zca"), 0.1)
    np.testing.assert_allclose(found, PIXELS.transpose(0, 2, 3, 1) / 255, atol=1e-4)


def test_another_eps_is_another_whitening(training):
    torch.save({"images": torch.from_numpy(whitened(training)), "labels": torch.from_numpy(LABELS)}, training / "s.pt")
    words = [training / "s.pt", training / "set", "--zca", training / "real", "--zca-eps", 0.5]
    assert convert(training, *words).code == 0
    with pytest.raises(AssertionError):
        check(training / "set", within=1)


def test_what_cannot_be_unwhitened_is_one_line(training):
    torch.save({"images": torch.rand(6, 3, 8, 6) - 2, "labels": torch.from_numpy(LABELS)}, training / "s.pt")
    words = [training / "s.pt", training / "set", "--zca", training / "real"]
    outcome = convert(training, *words)
    assert outcome.code == 2 and "8 x 6 pixels" in outcome.err and outcome.err.count("\n") == 1
    outcome = convert(training, *words, *NORMALISED)
    assert outcome.code == 2 and "one of them" in outcome.err
    shutil.rmtree(training / "real")
    outcome = convert(training, *words)
    assert outcome.code == 2 and "--zca" in outcome.err and not (training / "set").exists()
