"""The contact sheet: for some classes, the starting images above the recovered ones, early to late."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib import pyplot as plt
from PIL import Image

from utils.files import replacing
from utils.images import pick, read_rgb

matplotlib.use("Agg")

CLASSES, COLUMNS = 8, 10
GAP = 0.08  # between images, in image widths


def draw(path: str | Path, classes: list[str], before: list[list[Path | None]], after: list[list[Path]],
         iterations: list[int]) -> None:
    """Write the sheet as PNG.

    For each class a list of starting images (None where the start was noise) and one of recovered images, both in
    rank order; `iterations` says how many updates each rank had.
    """
    ranks = pick(len(iterations), COLUMNS)
    chosen = pick(len(classes), CLASSES)
    rows = [(label, images[label]) for label in chosen for images in (before, after) if images[label][0] is not None]
    pairs = len(rows) // len(chosen)
    figure, axes = plt.subplots(figsize=(1.3 + 0.92 * len(ranks), 0.7 + 0.92 * len(rows) + 0.14 * len(chosen)), dpi=110)
    y, ticks, names = 0.0, [], []
    for row, (label, images) in enumerate(rows):
        for column, rank in enumerate(ranks):
            left = column * (1 + GAP)
            image = read_rgb(images[rank])
            side = min(image.size)
            image = image.crop(((image.width - side) // 2, (image.height - side) // 2,
                                (image.width + side) // 2, (image.height + side) // 2))
            # Enlarged without smoothing, so that what is seen is what is stored.
            axes.imshow(image.resize((224, 224), Image.Resampling.NEAREST if side < 224 else Image.Resampling.LANCZOS),
                        extent=(left, left + 1, y + 1, y))
        kind = "recovered" if row % pairs == pairs - 1 else "start"
        ticks.append(y + 0.5)
        names.append(f"{classes[label]}\n{kind}")
        y += 1 + (GAP / 2 if kind == "start" else 3 * GAP)
    axes.set(xlim=(-GAP, len(ranks) * (1 + GAP)), ylim=(y, -GAP), aspect="equal")
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_xticks([column * (1 + GAP) + 0.5 for column in range(len(ranks))],
                    [f"rank {rank}\n{iterations[rank]} updates" for rank in ranks], fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")
    plt.close(figure)
