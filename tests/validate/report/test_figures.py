"""Figures: legends fit, and many lines can be told apart."""

import io

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from validate.report import figures

CURVE = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]


def drawn(names):
    """Each figure, of sets with these names."""
    rows = pd.DataFrame([{"method": name, "class": label, "similarity": 0.5} for name in names for label in "ab"])
    yield lambda: figures.curves(figures.points([(name, [CURVE]) for name in names], "loss"), "loss")
    yield lambda: figures.diversity(rows)
    seconds = pd.DataFrame(
        columns=["set", *figures.STAGES], data=[[name, None, 60.0, None, 120.0, None] for name in names]
    )
    yield lambda: figures.stages(seconds.astype({stage: float for stage in figures.STAGES}))


@pytest.mark.parametrize("name", ["ours", "a set with a long name that says much", "x" * 60])
@pytest.mark.parametrize("count", [1, 3, 9, pytest.param(24, marks=pytest.mark.slow)])
def test_legends_fit_into_their_figures(name, count):
    """Drawn to the last: what sticks out would be cut off."""
    for draw in drawn([f"{name} {k}" for k in range(count)]):
        figure = draw()
        figure.set_layout_engine("constrained")
        figure.canvas.draw()
        [legend] = figure.legends
        box, page = legend.get_window_extent(), figure.bbox
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y1 <= page.y1 + 1
        axes = figure.axes[0].get_window_extent()
        assert box.y0 >= axes.y1, "above the axes, not over them"
        assert axes.height > figure.dpi * 0.3 * min(count, 5), "and does not take their place"
        plt.close(figure)


def test_each_of_many_curves_has_a_look_of_its_own():
    figure = figures.curves(figures.points([(str(k), [CURVE]) for k in range(24)], "loss"), "loss")
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 24
    plt.close(figure)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_set_may_have_any_name(theme):
    for draw in drawn(["$_{", "<b>", "a\\b"]):
        with Image.open(io.BytesIO(figures.png(draw, theme))) as picture:
            assert picture.format == "PNG" and picture.width > 600


def test_curves_show_the_mean_where_something_was_measured():
    seeds = [[{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 1.0, "top1": top1}] for top1 in (20.0, 30.0)]
    points = figures.points([("set", seeds)], "top1")
    assert points.to_dict("records") == [
        {"set": "set", "epoch": 2, "mean": 25.0, "std": pytest.approx(50**0.5), "count": 2}
    ]
    figure = figures.curves(points, "top-1")
    [container] = figure.axes[0].containers
    assert container.lines[0].get_xydata().tolist() == [[2, 25.0]]
    plt.close(figure)


def test_many_classes_are_counted_instead_of_named():
    rows = pd.DataFrame([{"method": "a", "class": f"c{k}", "similarity": k / 100} for k in range(50)])
    figure = figures.diversity(rows)
    assert figure.axes[0].get_xlabel() == "50 classes" and len(figure.axes[0].get_xticks()) == 0
    plt.close(figure)
