"""The table of results, as it is stored and as people read it."""

from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import few
from result_files import write_result
from utils.run.markdown import escaped
from validate.report import collect, published, tables


def test_mean_and_sample_deviation(tmp_path):
    write_result(tmp_path, seeds=((0, 40.0), (1, 44.0), (2, 42.0)), syn_dir="s")
    row = tables.results(collect.read([tmp_path])).iloc[0]
    assert (row["top1"], row["std"], row["seeds"], row["source"]) == (42.0, 2.0, 3, "measured")
    assert (row["best_top1"], row["top5"], row["epochs"], row["seconds"]) == (43.0, 90.0, 3, 5.0)


def test_published_figures_are_added_and_marked(tmp_path):
    write_result(tmp_path, syn_dir="s")
    write_result(tmp_path, student="conv3", name="conv3", syn_dir="s")
    table = tables.results(collect.read([tmp_path]))
    known = table[table["source"] == "published"]
    assert dict(zip(known["method"], known["top1"])) == {"SRe2L": 29.3, "RDED": 37.1, "DELT": 43.0}
    assert set(known["student"]) == {"resnet18"} and known["seeds"].isna().all()


OWN = {"known_dataset": "cifar10", "classes": 10, "settings": {"input_size": 32}}


@pytest.mark.parametrize(
    "facts, shown",
    [
        (OWN, True),
        ({**OWN, "known_dataset": None}, False),
        ({**OWN, "classes": 2}, False),
        ({**OWN, "settings": {"input_size": 8}}, False),
        # Of earlier versions, which said neither the classes nor whether the data set was known.
        ({"images": 100, "settings": {"input_size": 32}}, True),
        ({"images": 20, "settings": {"input_size": 32}}, False),
    ],
)
def test_published_figures_stand_beside_the_data_that_they_are_of(tmp_path, facts, shown):
    """Not beside another folder of the same name, a part of the classes, or images of another size."""
    write_result(tmp_path, syn_dir="s", **facts)
    assert (tables.results(collect.read([tmp_path]))["source"] == "published").any() == shown


def test_published_figures_of_imagenet():
    found = [published.top1("imagenet1k", ipc, "resnet18", "resnet18")["DELT"] for ipc in (10, 50)]
    assert found == [46.1, 59.2]


def test_nothing_is_published_of_other_networks_and_sets():
    assert published.top1("cifar10", 10, "conv3", "conv3") == published.top1("mine", 10, "resnet18", "resnet18") == {}


def test_markdown(tmp_path):
    write_result(tmp_path, "a|b", seeds=((0, 40.0), (1, 44.0)), syn_dir="s", dataset="mine", name="x")
    write_result(tmp_path, "single", seeds=((0, 9.5),), syn_dir="s", dataset="mine")
    lines = tables.markdown(tables.results(collect.read([tmp_path]))).splitlines()
    assert lines[0].startswith("| data set | IPC | set |") and set(lines[1]) == {"|", "-"} and len(lines) == 4
    assert "| a\\|b |" in lines[3] or "| a\\|b |" in lines[2]
    text = "\n".join(lines)
    assert "| 42.00 ± 2.83 | 2 | 43.00 | 90.00 | 3 | 5 | measured |" in text and "| 9.50 | 1 |" in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("delt epochs=100", "delt epochs=100"),
        ("mobilenet_v2", "mobilenet\\_v2"),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("`x` *y* ~~z~~", "\\`x\\` \\*y\\* &#126;&#126;z&#126;&#126;"),
        ("[x](http://y.z)", "\\[x\\](http&#58;//y.z)"),
        ("www.y.z WWW.y.z", "www&#46;y.z WWW&#46;y.z"),
        ("<b>&amp;</b> $x$", "&#60;b&#62;&#38;amp;&#60;/b&#62; &#36;x&#36;"),
        ("a\n|b\r\n\u2028c\x1b[31m", "a \\|b c \\[31m"),
        ("/data/my set/", "/data/my set/"),
    ],
)
def test_what_markdown_would_read_as_more_is_escaped(text, expected):
    assert escaped(text) == expected


WORDS = st.text(st.sampled_from("ab1 |\\`*_[]()<>&~$#!{}+-.:/\n\t=@\"'"), max_size=30).map(str.strip)


@few
@given(st.lists(WORDS, min_size=5, max_size=5))
@example(["<script>alert(1)</script>", "![x](y)", "a | b", "\\", "&lt;"])
def test_every_cell_shows_what_it_holds(words):
    """By another reader of Markdown, which makes HTML of it: the cells hold the text, and no element but their own."""
    markdown = pytest.importorskip("markdown")
    names = dict(zip(("dataset", "method", "teacher", "student", "protocol"), words))
    rows = [{**dict.fromkeys(tables.TITLES), "std": None, "ipc": 3, "top1": 5.0, "source": "measured", **names}] * 2
    html = markdown.markdown(tables.markdown(pd.DataFrame(rows)), extensions=["tables"])
    root = ElementTree.fromstring(f"<root>{html}</root>")
    assert {element.tag for element in root.iter()} == {"root", "table", "thead", "tbody", "tr", "th", "td"}
    [head, *body] = [[" ".join((cell.text or "").split()) for cell in row] for row in root.iter("tr")]
    assert len(body) == 2 and {len(row) for row in body} == {len(head)}
    for name, word in names.items():
        assert body[0][head.index(tables.TITLES[name])] == " ".join(word.split())


def test_rows_of_other_settings_are_rows_of_their_own(tmp_path):
    write_result(tmp_path / "a", seeds=((0, 40.0),), syn_dir="s")
    write_result(tmp_path / "b", seeds=((0, 60.0),), syn_dir="s", settings={"lr": 0.5})
    table = tables.results(collect.read([tmp_path / "a", tmp_path / "b"]))
    assert table[table["source"] == "measured"]["top1"].tolist() == [40.0, 60.0]


def rows(*entries):
    names = ["student", "method", "ipc", "protocol", "settings", "top1"]
    return pd.DataFrame([{"teacher": "conv3", "syn_dir": "syn", **dict(zip(names, entry))} for entry in entries])


def cells(text):
    return [line.split() for line in text.splitlines()]


def test_summary_has_a_line_a_set_and_a_column_a_protocol():
    text = tables.summary(
        rows(
            ("conv3", "delt", "10", "delt", "a" * 64, 40.0),
            ("conv3", "delt", "10", "delt", "a" * 64, 44.0),
            ("conv3", "random", "10", "delt", "b" * 64, 20.0),
            ("conv3", "delt", "10", "hard", "c" * 64, 30.0),
        )
    )
    head, delt, random = cells(text)
    assert head == ["student", "method", "ipc", "delt", "hard"]
    assert delt == ["conv3", "delt", "10", "42.00", "±", "2.83", "30.00"]
    assert random == ["conv3", "random", "10", "20.00", "-"]


@pytest.mark.parametrize("name", ["teacher", "syn_dir"])
def test_sets_of_one_name_are_no_line_together(name):
    found = rows(
        ("conv3", "delt", "10", "delt", "a" * 64, 40.0),
        ("conv3", "delt", "10", "hard", "b" * 64, 30.0),
    )
    found.loc[1, name] = "another"
    head, *lines = cells(tables.summary(found))
    assert head == ["student", "method", "ipc", name, "delt", "hard"]
    assert sorted(line[4:] for line in lines) == [["-", "30.00"], ["40.00", "-"]]


def test_hard_labels_without_a_teacher_stand_beside_those_with_one():
    found = rows(
        ("conv3", "delt", "10", "delt", "a" * 64, 40.0),
        ("conv3", "delt", "10", "hard", "b" * 64, 30.0),
    )
    found.loc[1, "teacher"] = "none"
    assert cells(tables.summary(found))[1:] == [["conv3", "delt", "10", "40.00", "30.00"]]


def test_summary_never_averages_other_settings():
    text = tables.summary(
        rows(
            ("conv3", "delt", "10", "delt", "a1" * 32, 40.0),
            ("conv3", "delt", "10", "delt", "b2" * 32, 60.0),
            ("conv3", "delt", "10", "delt", "b2" * 32, 62.0),
            ("conv3", "delt", "10", "hard", "c3" * 32, 30.0),
        )
    )
    head, *lines = cells(text)
    assert head == ["student", "method", "ipc", "settings", "delt", "hard"]
    assert ["conv3", "delt", "10", "a1a1a1a1", "40.00", "-"] in lines
    assert ["conv3", "delt", "10", "b2b2b2b2", "61.00", "±", "1.41", "-"] in lines
    assert ["conv3", "delt", "10", "-", "30.00"] in lines and len(lines) == 3
