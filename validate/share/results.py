"""The results of a set, found by its images among those of runs, and what they say beside random images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import pandas as pd

from utils import hub
from utils.data.manifest import IMAGES
from utils.run.errors import UserError
from utils.run.files import as_json, read_json
from validate.report import collect, comparison
from validate.report.collect import Measured
from validate.results import Result, summary
from validate.share.source import Source

FOLDER = "results"
TABLE = f"{FOLDER}/comparison.csv"


@dataclass(frozen=True)
class Results:
    """What was measured of the set; the rows of the `frame` are those of `validate.report.comparison`."""

    measured: list[Measured]
    frame: pd.DataFrame
    texts: dict[str, str]  # the files to write

    @classmethod
    def of(cls, runs: Sequence[str], source: Source) -> Results:
        """Raises UserError where none of the runs has a result of these images."""
        found = collect.read(runs)
        own = [source.is_of(one.settings.get("images")) for one in found]
        if not any(own):
            raise UserError(
                f"--results {' '.join(runs)}: has no result of the images in {source.folder.root}, their classes in "
                "this order; give the --output-dir of their validate, and --teacher-path if its teacher has another "
                "order of classes"
            )
        frame = comparison.table(found)[own].reset_index(drop=True).assign(syn_dir=IMAGES)
        texts = {f"{FOLDER}/{name}": as_json(content) for name, content in sorted(_contents(runs, source).items())}
        texts[TABLE] = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return cls([one for one, is_own in zip(found, own) if is_own], frame, texts)


def _contents(runs: Sequence[str], source: Source) -> dict[str, dict[str, Any]]:
    """File name -> the result, without anybody's folders; the seeds that several runs have of it together."""
    found: dict[str, dict[str, Any]] = {}
    for path in (path for run in runs for path in sorted((Path(run) / "results").glob("*.json"))):
        content = read_json(path)
        if not source.is_of(content["settings"].get("images")):
            continue
        # `settings` identify the result, and name no folder.
        content = {**hub.without_folders(content), "settings": content["settings"], "syn_dir": IMAGES}
        if path.name in found:
            seeds = {one["seed"]: one for one in (*content["seeds"], *found[path.name]["seeds"])}
            content = {**found[path.name], "seeds": [seeds[seed] for seed in sorted(seeds)]}
            content |= summary([Result(**one) for one in content["seeds"]])
        found[path.name] = content
    return found
