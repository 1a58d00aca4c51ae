"""What the report's figures are drawn of."""

import hashlib

from helpers import noise
from result_files import DIGEST, write_manifest, write_result
from utils.data.manifest import Manifest
from validate.report import charts, collect

OTHER = hashlib.sha256(b"other images").hexdigest()


def made(folder, digest=DIGEST):
    """A set of two images a class, and the digest of its images."""
    names = [f"{label}/{k}.png" for label in ("ant", "moth") for k in range(2)]
    for number, name in enumerate(names):
        noise(folder / name, number)
    write_manifest(folder, settings={}, sha256={name: digest for name in names}, finished=True)
    return Manifest.of(folder).digest


def write_diversity(run, *rows):
    """A diversity.csv of two classes; each row is a dictionary of what is not the default."""
    usual = {"method": "delt", "images": 2, "similarity": 0.5, "extractor": "conv3", "syn_dir": "syn", "set": ""}
    usual["extractor_sha256"] = ""
    rows = [{**usual, **row, "class": label} for row in rows for label in ("ant", "moth")]
    run.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (run / "diversity.csv").write_text("\n".join([*lines, ""]))


def lines_of(*runs):
    """Line -> mean of what the figure of diversity shows."""
    found = next(one for one in charts.of_runs(list(map(str, runs)), collect.read(runs)) if one.anchor == "diversity")
    return {} if found.numbers is None else found.numbers.groupby("method")["similarity"].mean().to_dict()


def test_similarity_of_images_that_were_made_anew_is_not_drawn(tmp_path, capsys):
    folder = str(tmp_path / "syn")
    before = made(tmp_path / "syn")
    write_result(tmp_path, set=before)
    write_diversity(tmp_path, {"syn_dir": folder, "set": before}, {"syn_dir": "/other", "method": "mine", "set": "b"})
    assert lines_of(tmp_path) == {"delt": 0.5, "mine": 0.5}
    now = made(tmp_path / "syn", OTHER)
    write_result(tmp_path, set=now, name="again", settings={"images": "anew"})
    assert lines_of(tmp_path) == {"mine": 0.5} and f"left out: the diversity of {folder}" in capsys.readouterr().out
    write_diversity(tmp_path, {"syn_dir": folder, "set": now, "similarity": 0.7})
    assert lines_of(tmp_path) == {"delt": 0.7}


def test_each_network_that_looked_at_a_set_has_a_line_that_names_it(tmp_path):
    write_result(tmp_path)
    one, two = DIGEST, OTHER
    by_conv3 = [{"extractor_sha256": sha, "similarity": value} for sha, value in ((one, 0.5), (two, 0.6))]
    write_diversity(tmp_path, *by_conv3, {"extractor": "resnet18", "extractor_sha256": two, "similarity": 0.9})
    assert lines_of(tmp_path) == {
        f"delt (conv3) ({one[:8]})": 0.5,
        f"delt (conv3) ({two[:8]})": 0.6,
        "delt (resnet18)": 0.9,
    }


def test_sets_of_one_relative_path_in_two_runs_are_two_lines(tmp_path):
    """Unless their images are the same."""
    a, b = tmp_path / "a", tmp_path / "b"
    for run, value in ((a, 0.5), (b, 0.6)):
        write_result(run, syn_dir="syn")
        write_diversity(run, {"similarity": value}, {"method": "random", "set": DIGEST, "similarity": 0.3})
    assert lines_of(a, b) == {f"delt ({a})": 0.5, f"delt ({b})": 0.6, "random": 0.3}


def test_sets_of_other_classes_have_a_figure_of_their_own(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for run, dataset, classes in ((a, "insects", "ant moth"), (b, "letters", "x y z")):
        write_result(run, dataset=dataset)
        rows = [f"delt,{label},2,0.5,conv3,{run / 'syn'}" for label in classes.split()]
        (run / "diversity.csv").write_text("\n".join(["method,class,images,similarity,extractor,syn_dir", *rows, ""]))
    found = [one for one in charts.of_runs([str(a), str(b)], collect.read([a, b])) if one.title.startswith("Diversity")]
    assert [(one.title, sorted(one.numbers["class"])) for one in found] == [
        ("Diversity, insects", ["ant", "moth"]),
        ("Diversity, letters", ["x", "y", "z"]),
    ]
    lines = [len(line.get_xdata()) for one in found for line in one.draw().axes[0].lines]
    assert lines == [2, 3] and [one.anchor for one in found] == ["diversity", "diversity-2"]
