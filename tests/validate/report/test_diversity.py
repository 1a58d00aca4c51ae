"""Diversity: the mean cosine similarity of all pairs of a class."""

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import CLASSES, INPUT, MEAN, STD
from helpers import few
from plain_teacher import features_and_logits
from result_files import DIGEST, write_manifest
from utils.data.manifest import Manifest
from utils.run.errors import UserError
from utils.run.files import sha256
from validate.report import diversity


@few
@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**30))
def test_similarity_is_the_mean_over_pairs(count, width, seed):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    points = rows.double().numpy()
    pairs = itertools.combinations(points, 2)
    expected = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    assert diversity.similarity(rows) == pytest.approx(expected, abs=1e-6)


def measure(place, **changes):
    line = dict(method=["medium", "train"], teacher_path=place.teacher, output_dir=place / "out")
    words = place.command("ranking", train_dir=None, ranking_file=None, ipc=None, **{**line, **changes})
    return place.start("validate.report.diversity", place.init, place.train, *words)


def test_diversity_of_several_sets(place):
    images = {path.relative_to(place.init).as_posix(): DIGEST for path in place.init.glob("*/*")}
    write_manifest(place.init, settings={}, sha256=images, finished=True)
    outcome = measure(place)
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(place / "out" / "diversity.csv")
    assert (
        list(table["method"].unique()) == ["medium", "train"]
        and table.groupby("method")["class"].apply(set).tolist() == [set(CLASSES)] * 2
    )
    assert set(table.loc[table["method"] == "medium", "images"]) == {4} and table["similarity"].between(-1, 1).all()
    assert (table["extractor"] == "conv3").all() and (table["extractor_sha256"] == sha256(place.teacher)).all()
    assert set(table.loc[table["method"] == "medium", "set"]) == {Manifest.of(place.init).digest}
    assert table.loc[table["method"] == "train", "set"].isna().all(), "it has no manifest"
    assert (place / "out" / "diversity.png").read_bytes().startswith(b"\x89PNG")
    mean = table.loc[table["method"] == "medium", "similarity"].mean()
    assert f"medium: {mean:.4f}" in outcome.out


def test_a_set_called_after_its_recipe_says_what_was_changed(place):
    write_manifest(place.init, method="delt iterations=7", arguments={"method": "delt"})
    assert measure(place, method=["delt", "cda"]).code == 0
    found = pd.read_csv(place / "out" / "diversity.csv")["method"]
    assert list(found.unique()) == ["delt iterations=7", "cda"]


def test_similarity_is_that_of_the_penultimate_features(place):
    """By the teacher's weights, on the images as Pillow reads and resizes them."""
    assert measure(place).code == 0
    found = pd.read_csv(place / "out" / "diversity.csv").set_index(["method", "class"])["similarity"]
    for folder, method in ((place.init, "medium"), (place.train, "train")):
        for name in CLASSES:
            images = [Image.open(path).convert("RGB") for path in sorted((folder / name).iterdir())]
            pixels = np.stack([np.asarray(image.resize((INPUT, INPUT), Image.Resampling.BILINEAR)) for image in images])
            seen = torch.tensor((pixels / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
            points = features_and_logits(place.teacher, seen)[0].double().numpy()
            pairs = itertools.combinations(points, 2)
            expected = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
            assert found[method, name] == pytest.approx(expected, abs=1e-4)


def test_copies_of_one_image_are_not_diverse(place):
    for name in CLASSES:
        [first, *others] = sorted((place.init / name).iterdir())
        for other in others:
            other.write_bytes(first.read_bytes())
    assert measure(place).code == 0
    table = pd.read_csv(place / "out" / "diversity.csv").set_index(["method", "class"])["similarity"]
    assert table["medium"].tolist() == pytest.approx([1, 1, 1], abs=1e-5) and (table["train"] < 1).all()


def test_another_network_can_look(place):
    """An extractor that was trained on other classes: only its features count."""
    place.works("squeeze", output=place / "other.pth", arch="conv3", input_size=16, epochs=1)
    assert measure(place, teacher_path=place / "other.pth").code == 0


@pytest.mark.parametrize("changes, words", [(dict(method=["one"]), ["2", "1"]), (dict(method=["a", "a"]), ["differ"])])
def test_bad_names(place, changes, words):
    outcome = measure(place, **changes)
    assert outcome.code == 2 and all(word in outcome.err for word in words)


def test_a_single_image_has_no_pair(place):
    for name in CLASSES:
        for file in sorted((place.init / name).iterdir())[1:]:
            file.unlink()
    outcome = measure(place)
    assert outcome.code == 2 and "single image" in outcome.err and not (place / "out").exists()


def test_a_batch_size_that_is_found_gives_the_same(place):
    assert measure(place).code == 0
    outcome = measure(place, batch_size="auto", output_dir=place / "auto")
    assert outcome.code == 0 and "--batch-size auto: 256" in outcome.out, outcome.err
    assert (place / "auto" / "diversity.csv").read_bytes() == (place / "out" / "diversity.csv").read_bytes()


@pytest.mark.parametrize("name", CLASSES)
def test_a_process_among_several_decodes_every_image_before_it_measures(place, monkeypatch, name):
    """They share nothing, so that nobody does a part for another."""
    monkeypatch.setattr("utils.data.image_folder.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(diversity, "measure", lambda *_: pytest.fail("begun before all images were decoded"))
    damaged = place.init / name / f"{name}3.png"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    words = [place.init, "--teacher-path", place.teacher, "--output-dir", place / "found", "--device", "cpu"]
    outcome = place.start("validate.report.diversity", *words, env={"RANK": "0", "WORLD_SIZE": "3"})
    assert outcome.code == 2 and str(damaged) in outcome.err


def test_other_classes_are_refused(place):
    (place.init / "zebra").rename(place.init / "yak")
    outcome = measure(place)
    assert outcome.code == 2 and "yak" in outcome.err and not (place / "out").exists()


HEAD = "method,class,images,similarity,extractor,syn_dir\n"


def test_a_table_is_read_as_it_was_written(tmp_path):
    (tmp_path / "diversity.csv").write_text(HEAD + "NA,01,2,0.5,conv3,s\n")
    [row] = diversity.read(tmp_path / "diversity.csv").to_dict("records")
    assert (row["method"], row["class"], row["similarity"]) == ("NA", "01", 0.5)


@pytest.mark.parametrize("content", ["", "method,class\na,b\n", "\x00\x01", HEAD, HEAD + "a,b,1,high,c,d\n"])
def test_a_strange_table_of_diversity(tmp_path, content):
    (tmp_path / "diversity.csv").write_text(content)
    with pytest.raises(UserError, match="validate.report.diversity"):
        diversity.read(tmp_path / "diversity.csv")


def test_sets_of_other_names_are_taken_by_position_if_that_is_said(place):
    shutil.copytree(place.init, place / "other")
    for number, name in enumerate(sorted(path.name for path in place.init.iterdir())):
        (place / "other" / name).rename(place / "other" / f"new{number:03d}")
    words = [place.init, place / "other", "--teacher-path", place.teacher, "--output-dir", place / "found"]
    refused = place.start("validate.report.diversity", *words)
    assert refused.code == 2 and "new000" in refused.err
    assert place.start("validate.report.diversity", *words, "--classes-by", "position").code == 0
    table = diversity.read(place / "found" / "diversity.csv")
    one, two = (table[table["method"] == name].set_index("class")["similarity"] for name in ("init", "other"))
    assert one.to_dict() == two.to_dict()
