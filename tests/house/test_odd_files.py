"""Outputs behind links, long names and names that are no UTF-8: each stage works, or refuses in one line."""

import os
import shutil
from unittest import mock

import pytest

from conftest import images
from refusals import refused
from utils.data.image_folder import ImageFolder
from utils.fit.batch_size import find_batch_size
from utils.run.errors import UserError
from utils.run.outputs import check_output, claim


@pytest.mark.parametrize("stage, flag", [("ranking", "output_dir"), ("recover", "syn_dir"), ("validate", "output_dir")])
@pytest.mark.parametrize("there", [True, False])
def test_an_output_behind_a_link(place, stage, flag, there):
    if there:
        (place / "scratch").mkdir()
    (place / "link").symlink_to("scratch")
    place.works(stage, **{flag: place / "link"})
    made = sorted(path.name for path in (place / "scratch").iterdir())
    assert (place / "link").is_symlink() and len(made) > 1
    place.works(stage, **{flag: place / "link"})
    if stage == "validate":
        return
    kept = images(place / "scratch")
    refused(place, stage, "--overwrite", **{flag: place / "link"}, **{"ipc": 3})
    place.works(stage, **{flag: place / "link"}, ipc=3, overwrite=True)
    assert (place / "link").is_symlink() and len(images(place / "scratch")) == 9 < len(kept)


def test_what_a_link_in_an_emptied_folder_leads_to_stays(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to("scratch")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.txt").write_text("mine")
    claim(tmp_path / "link", "record.json", {"seed": 0}, False)
    (tmp_path / "scratch/inner").symlink_to(tmp_path / "mine")
    (tmp_path / "scratch/a").mkdir()
    claim(tmp_path / "link", "record.json", {"seed": 1}, True)
    assert sorted(os.listdir(tmp_path / "scratch")) == ["record.json"] and (tmp_path / "mine/x.txt").exists()


def test_a_link_that_leads_to_itself_is_named(tmp_path):
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(UserError, match="link that leads to itself"):
        check_output(tmp_path / "link")


def test_an_output_s_name_of_255_letters_is_refused_before_any_work(place):
    refused(place, "recover", "bytes", syn_dir=place / ("x" * 255))
    refused(place, "ranking", "bytes", ranking_file=place / ("x" * 251 + ".csv"))


def test_a_name_of_255_bytes_goes_through_all_stages(place):
    for folder in ("train", "init"):
        first = next((place / folder / "ant").iterdir())
        first.rename(first.with_name("b" * 251 + ".png"))
    count = len(list((place / "train/ant").iterdir()))
    place.works("ranking", ipc=count)
    [long] = [path for path in (place / "selected/ant").iterdir() if "bbb" in path.name]
    assert long.read_bytes() == (place / "train/ant" / ("b" * 251 + ".png")).read_bytes()
    place.works("recover", init_dir=place / "selected", batch_size=count)
    place.works("validate", syn_dir=place.syn, method="m" * 300)
    assert len(images(place.syn)) == 3 * count


@pytest.mark.parametrize("stage, folder", [("ranking", "train"), ("recover", "init"), ("validate", "val")])
def test_a_name_that_is_no_utf_8_is_refused_in_one_line(place, stage, folder):
    path = os.fsencode(place / folder / "ant")
    try:
        shutil.copy(os.path.join(path, sorted(os.listdir(path))[0]), os.path.join(path, b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    refused(place, stage, "UTF-8", r"caf\xe9.png")


def test_an_argument_that_is_no_utf_8_is_refused_in_one_line(place):
    refused(place, "ranking", r"caf\xe9", output_dir=os.fsdecode(os.fsencode(place.root) + b"/caf\xe9"))


def test_a_batch_size_is_kept_where_the_file_system_has_no_hard_links(tmp_path):
    with mock.patch("os.link", side_effect=PermissionError("Operation not permitted")):
        assert find_batch_size(8, 1, tmp_path / "x", lambda images: None) == 8
    assert find_batch_size(8, 1, tmp_path / "x", None) == 8, "what was found first"
    assert sorted(os.listdir(tmp_path)) == [".x.batch-size"]


@pytest.mark.parametrize("name", ["set.pt", "set.npz", "images.npy"])
def test_a_file_of_tensors_in_place_of_a_folder(place, name):
    (place / name).write_bytes(b"of another project")
    for stage, flag in (("validate", "syn_dir"), ("ranking", "train_dir"), ("recover", "init_dir")):
        line = refused(place, stage, name, **{flag: place / name})
        assert "python -m utils.from_tensors" in line


def test_a_folder_of_tensors(tmp_path):
    (tmp_path / "images_best.pt").write_bytes(b"of another project")
    with pytest.raises(UserError, match="images_best.pt.*python -m utils.from_tensors"):
        ImageFolder(tmp_path, "--syn-dir")


def test_an_archive_in_place_of_a_folder(tmp_path):
    (tmp_path / "train.tar.gz").write_bytes(b"packed")
    with pytest.raises(UserError, match="train.tar.gz.*unpack it"):
        ImageFolder(tmp_path / "train.tar.gz", "--train-dir")
