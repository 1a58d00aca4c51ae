"""Outputs that hold something else are one clear line that names them, exit code 2, and nothing written."""

import shutil

import pytest
import torch

from conftest import draw, images
from refusals import refused


@pytest.mark.parametrize(
    "changes",
    [
        dict(iterations=4),
        dict(seed=1),
        dict(ipc=2),
        dict(r_bn=0.1),
        dict(image_format="jpg"),
        dict(batch_by="index"),
        dict(init="noise", ipc=4),
    ],
    ids=lambda changes: next(iter(changes)),
)
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


@pytest.mark.parametrize(
    "changes",
    [dict(epochs=5), dict(lr=0.01), dict(seed=1), dict(arch="conv4", input_size=16)],
    ids=lambda changes: next(iter(changes)),
)
def test_squeeze_onto_another_runs_checkpoint(place, changes):
    place.works("squeeze", epochs=1)
    refused(place, "squeeze", place / "squeezed.pth", next(iter(changes)), "--overwrite", **{"epochs": 1, **changes})


def test_squeeze_onto_a_checkpoint_of_others_or_a_folder(place):
    torch.save({"state_dict": torch.load(place.teacher, weights_only=True)["model"]}, place / "squeezed.pth")
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


@pytest.mark.parametrize(
    "stage, flag",
    [
        ("squeeze", "output"),
        ("ranking", "output_dir"),
        ("ranking", "ranking_file"),
        ("recover", "syn_dir"),
        ("validate", "output_dir"),
    ],
)
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
