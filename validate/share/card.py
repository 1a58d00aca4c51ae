"""The card of a shared set: README.md, for people and for `datasets.load_dataset`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Sequence

import pandas as pd

from utils import cli, hub
from utils.data.manifest import IMAGES, MANIFEST, part
from utils.run.markdown import escaped, table
from validate.labels import BATCH_SETTINGS, LATER_VIEWS, VIEW_SETTINGS, StoredLabels
from validate.protocols import DELT
from validate.share.results import TABLE, Results
from validate.share.source import Source

SOURCE = "the data that the images were made of"
SHEET = "contact_sheet.png"
TEACHER, SETTING = ("teacher", "SHA-256 of its file"), ("setting", "value")  # heads of tables


@dataclass(frozen=True)
class Facts:
    """What a card is about."""

    source: Source
    labels: Sequence[StoredLabels]
    results: Results | None
    licence: str
    name: str | None
    data: str | None  # what the real data are called, as given

    @property
    def dataset(self) -> str | None:
        """The real data set, by name. Raises UserError as `hub.name_of_data` does."""
        return hub.name_of_data(self.data, self.source.manifest.dataset, *(one.teachers.dataset for one in self.labels))

    @property
    def title(self) -> str:
        if self.name:
            return self.name
        return f"{f'{self.dataset}, ' if self.dataset else ''}{self.source.method}, {self.per_class}"

    @property
    def per_class(self) -> str:
        fewest, most = self.source.folder.fewest(), self.source.folder.most()
        return f"{fewest if fewest == most else f'{fewest} to {most}'} image{'s' * (most > 1)} per class"


def text(facts: Facts) -> str:
    """The whole README.md."""
    sections = [_head(facts), _use(facts), _making(facts.source), _measured(facts), _labels(facts.labels)]
    sections += [_classes(facts.source), _licence(facts)]
    return hub.card(_front(facts), "\n\n".join(section.strip() for section in sections if section))


def _front(facts: Facts) -> dict[str, Any]:
    """What the Hub and `datasets` read.

    The classes stand in the order of the teacher; without them `datasets` would sort their names. `drop_labels` gives
    labels to a single class, too.
    """
    names = {str(label): name for label, name in enumerate(facts.source.folder.classes)}
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": names}}},
    ]
    files = [{"split": IMAGES, "path": f"{IMAGES}/*/*"}]
    return {
        "pretty_name": facts.title,
        **hub.licence_fields(facts.licence),
        "task_categories": ["image-classification"],
        "size_categories": [hub.size_category(len(facts.source.folder))],
        "tags": ["dataset-distillation", *(["synthetic"] if facts.source.manifest.is_recovered else [])],
        "configs": [{"config_name": "default", "data_files": files, "drop_labels": False, "features": features}],
    }


def _head(facts: Facts) -> str:
    folder = facts.source.folder
    kind = "synthetic images, made by dataset distillation" if facts.source.manifest.is_recovered else "images"
    of = f" of {escaped(facts.dataset)}" if facts.dataset else ""
    return (
        f"# {escaped(facts.title)}\n\n{len(folder):,} {kind}{of} for training image classifiers: {facts.per_class}, "
        f"{len(folder.classes):,} classes. Method: {escaped(facts.source.method)}.\n\n![Some of the images]({SHEET})"
    )


def _use(facts: Facts) -> str:
    flags = f" --load-labels FOLDER/labels{_label_flags(facts)}" if facts.labels else ""
    return (
        "## Use\n\nFOLDER is where this folder is.\n\n```python\nfrom datasets import load_dataset\n\n"
        f'images = load_dataset("FOLDER", split="{IMAGES}")  # or the name that it has on the Hub\n```\n\n'
        f"```bash\npython -m validate --syn-dir FOLDER --val-dir REAL_TEST_IMAGES{flags}\n```\n\n"
        "The second command is of the project that made the set, which trains students on it and tests them"
        + ("; the labels need the settings below." if facts.labels else ".")
    )


def _label_flags(facts: Facts) -> str:
    """The flags that a student was trained with on these labels, as they were given; empty if none was."""
    measured = facts.results.measured if facts.results else []
    given = next((one.arguments for one in measured if facts.labels[0].are_of(one.settings)), {})
    names = [
        name for name in ("protocol", *DELT, "dataset", "student_arch", "seed", "seeds") if given.get(name) is not None
    ]
    values = {name: given[name] if isinstance(given[name], list) else [given[name]] for name in names}
    return "".join(f" {cli.spelled(name)} {shlex.join(map(str, own))}" for name, own in values.items())


def _making(source: Source) -> str:
    record = hub.without_folders(source.manifest.content)
    if not record:
        return ""
    rows = hub.rows_of(part(record, "settings"))
    rows += hub.rows_of({name: record.get(name) for name in ("rounds", "ranking_sha256", "seconds", "peak_memory_mb")})
    rows += hub.rows_of(part(record, "versions"), "version of ")
    found = record.get("teachers")
    teachers = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    named = table(TEACHER, [(one.get("arch"), one.get("sha256")) for one in teachers]) + "\n" if teachers else ""
    return (
        f"## How it was made\n\n{named}{table(SETTING, rows)}\n`{IMAGES}/{MANIFEST}` says all, and the SHA-256 of "
        "each image."
    )


def _measured(facts: Facts) -> str:
    if facts.results is None:
        return "## Measured\n\nNothing was measured of it, or nothing was handed on with it."
    rows = [
        (
            *(one.student, one.teacher or "none", one.protocol, one.epochs, ", ".join(map(str, sorted(one.seeds)))),
            *(_number(row["top1"], row["top1_std"]), f"{one.mean('top5'):.2f}"),
            _number(row["margin"], row["margin_std"], "+"),
        )
        for one, (_, row) in zip(facts.results.measured, facts.results.frame.iterrows())
    ]
    head = ("student", "teacher", "protocol", "epochs", "seeds", "top-1", "top-5", "over random")
    return (
        f"## Measured\n\n{table(head, rows)}\nStudents were trained on this set alone and tested on real images; "
        "top-1 and top-5 of the last epoch in percent, the mean over the seeds, and of top-1 the sample standard "
        "deviation. Over random: the mean minus that of as many random real images under the same protocol, with its "
        f"standard error. `results/*.json` have all settings and the learning curves, `{TABLE}` has the table."
    )


def _number(value: float, deviation: float, sign: str = "") -> str:
    if pd.isna(value):
        return "not measured"
    return f"{value:{sign}.2f}" if pd.isna(deviation) else f"{value:{sign}.2f} ± {deviation:.2f}"


def _labels(labels: Sequence[StoredLabels]) -> str:
    if not labels:
        return ""
    index = labels[0].index
    settings, classes = index["settings"], index["num_classes"]
    kept = f"the {labels[0].kept} largest of {classes}" if labels[0].kept < classes else f"all {classes}"
    teachers = zip(index["archs"], settings["teachers"])
    rows = hub.rows_of({name: settings.get(name) for name in (*VIEW_SETTINGS, *LATER_VIEWS, *BATCH_SETTINGS)})
    return (
        f"## Labels\n\nWhat the teachers said of every view of every step, {kept} classes, for "
        f"seed{'s' * (len(labels) > 1)} {', '.join(str(one.seed) for one in labels)}: `labels/seed*/*.safetensors`. "
        "Students are trained on them without a teacher. They are for these settings:\n\n"
        f"{table(TEACHER, teachers)}\n{table(SETTING, rows)}"
    )


def _classes(source: Source) -> str:
    names = ", ".join(f"{label} {escaped(name)}" for label, name in enumerate(source.folder.classes))
    return f"## Classes\n\nIn the order of the labels: {names}."


def _licence(facts: Facts) -> str:
    made = "were made from them" if facts.source.manifest.is_recovered else "are their own, or were made from them"
    return f"{hub.licence_section(facts.licence, facts.dataset, 'this set')} The images {made}."
