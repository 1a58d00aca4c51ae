"""What the Hub reads of a card, and what is kept out of shared files."""

import pytest
import yaml

from utils import hub
from utils.data.manifest import images_of


@pytest.mark.parametrize(
    "text, expected",
    [
        ("MIT", {"license": "mit"}),
        (" cc-by-nc-sa-4.0 ", {"license": "cc-by-nc-sa-4.0"}),
        ("ImageNet terms", {"license": "other", "license_name": "imagenet-terms"}),
        (
            "non-commercial; see https://image-net.org/download.php.",
            {
                "license": "other",
                "license_name": "non-commercial-see",
                "license_link": "https://image-net.org/download.php",
            },
        ),
        ("https://a.b/c", {"license": "other", "license_name": "see-card", "license_link": "https://a.b/c"}),
        ("自由", {"license": "other", "license_name": "see-card"}),
    ],
)
def test_licences(text, expected):
    assert hub.licence_fields(text) == expected


@pytest.mark.parametrize(
    "count, expected",
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (50_000, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (10**7, "n>10M"),
    ],
)
def test_sizes(count, expected):
    assert hub.size_category(count) == expected


def test_names_that_yaml_would_read_as_something_else_stay_names():
    names = {"0": "no", "1": "1e3", "2": "null", "3": "ü: #x", "4": "007", "5": "2001-01-01", "6": "y", "7": "a" * 300}
    text = hub.card({"names": names, "top1": 0.1}, "# x")
    _, front, body = text.split("---\n")
    assert yaml.safe_load(front) == {"names": names, "top1": 0.1} and body == "\n# x\n"


def test_absolute_paths_are_cut_to_their_last_name():
    value = {"a": "/home/me/x.pth", "b": ["/data/train/", "runs/y", 3, None], "c": {"/d": "ant/0.png"}, "e": "/"}
    cut = {"a": "x.pth", "b": ["train", "runs/y", 3, None], "c": {"/d": "ant/0.png"}, "e": "/"}
    assert hub.without_folders(value) == cut


def test_rows_are_what_fits_one_line():
    settings = {"lr": 0.1, "sizes": [1, 2], "none": None, "long": "x" * 81, "inner": {"a": 1}, "flip": True}
    assert hub.rows_of(settings, "s ") == [("s lr", "0.1"), ("s sizes", "1, 2"), ("s flip", "True")]
    assert hub.rows_of(["no", "settings"]) == []


def test_only_a_shared_folder_stands_for_its_images(tmp_path):
    (tmp_path / "train").mkdir()
    assert images_of(str(tmp_path)) == str(tmp_path), "of somebody's classes one may be called train"
    (tmp_path / "share.json").touch()
    assert images_of(str(tmp_path)) == str(tmp_path / "train")
