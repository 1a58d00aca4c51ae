"""The page: one HTML file that opens from disk and needs no network."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Sequence

import jinja2
import pandas as pd

from utils.data.gallery import Block
from validate.report import comparison, figures, tables
from validate.report.charts import Chart
from validate.report.collect import Measured
from validate.report.scores import TITLES

MANY_ROWS = 20  # above so many a table has a filter
TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Contents:
    """What the page shows."""

    title: str
    command: str  # that made it
    measured: Sequence[Measured]
    compared: pd.DataFrame  # of comparison.table
    results: pd.DataFrame  # of tables.results
    scores: pd.DataFrame  # of scores.table
    charts: Sequence[Chart]
    blocks: Iterable[Block]


def render(contents: Contents) -> str:
    """The page as HTML; its pictures lie in it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    blocks = [_block(block) for block in contents.blocks]
    counts = [len(entry.seeds) for entry in contents.measured]
    charts = [(chart.anchor, chart.title) for chart in contents.charts]
    return environment.get_template(TEMPLATE.name).render(
        title=contents.title,
        command=contents.command,
        students=sum(counts),
        sets=len({entry.syn_dir for entry in contents.measured}),
        seeds=f"{min(counts)} to {max(counts)} seeds each" if min(counts) < max(counts) else f"seeds each: {counts[0]}",
        sections=[("comparison", "Comparison"), ("results", "Results"), *charts, ("gallery", "Gallery")],
        groups=list(comparison.groups(contents.compared)),
        note=comparison.note(contents.compared),
        columns=[
            {"title": title, "number": name in tables.NUMBERS, "detail": name in tables.DETAILS}
            for name, title in tables.TITLES.items()
        ],
        many=MANY_ROWS,
        rows=[_row(row) for _, row in contents.results.iterrows()],
        scores=_scores(contents.scores),
        charts=[_chart(chart) for chart in contents.charts],
        blocks=blocks,
    )


def _row(row: pd.Series) -> dict[str, Any]:
    cells = [
        {
            "text": tables.cell(name, row),
            "value": "" if pd.isna(row[name]) else row[name],
            "number": name in tables.NUMBERS,
            "detail": name in tables.DETAILS,
        }
        for name in tables.TITLES
    ]
    return {"published": row["source"] == tables.PUBLISHED, "cells": cells}


def _scores(table: pd.DataFrame) -> dict[str, Any] | None:
    if table.empty:
        return None

    def text(value: Any) -> str:
        return "" if pd.isna(value) else f"{value:.3f}" if isinstance(value, float) else str(value)

    return {
        "columns": [{**tables.TITLES, **TITLES}.get(name, name) for name in table.columns],
        "rows": table.map(text).to_numpy().tolist(),
    }


def _chart(chart: Chart) -> dict[str, Any]:
    pictures = chart.numbers is not None and {theme: _uri(figures.png(chart.draw, theme)) for theme in figures.THEMES}
    return {"anchor": chart.anchor, "title": chart.title, "text": chart.text, "pictures": pictures}


def _block(block: Block) -> dict[str, Any]:
    """The block with its thumbnails as data URIs; a picture in memory is far larger."""
    strips = []
    for strip in block.strips:
        images = []
        for thumbnail in strip.thumbnails:
            buffer = io.BytesIO()
            thumbnail.image.save(buffer, "PNG", optimize=True)
            caption = ", ".join([block.name, strip.title, *thumbnail.facts])
            images.append({"uri": _uri(buffer.getvalue()), "caption": caption, "enlarged": thumbnail.enlarged})
        strips.append({"title": strip.title, "images": images})
    return {"name": block.name, "strips": strips}


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
