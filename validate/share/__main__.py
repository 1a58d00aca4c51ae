"""python -m validate.share: a synthetic set, its labels and its results as a folder for the Hugging Face Hub.

In the folder are the images as an ImageFolder, train/CLASS/NAME.png, byte for byte, with their manifest; the labels and
results as they are; a contact sheet; and README.md, the card, whose YAML makes `datasets.load_dataset(FOLDER)` give
each image the label that it has for the teacher. An ImageFolder and not parquet, because its files keep their names and
bytes: by these labels and results know their images, and validate takes the folder as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from utils import cli, hub
from utils.data import gallery
from utils.data.gallery import ImageSet
from utils.data.manifest import IMAGES, MANIFEST, images_of
from utils.run import entry
from utils.run.files import as_json, digest, sha256
from validate.labels import INDEX, folder_of
from validate.report import origins
from validate.share import card
from validate.share.card import Facts
from validate.share.results import Results
from validate.share.source import Source, check_labels, labels_in, order_of


@dataclass(frozen=True)
class Flags:
    syn_dir: str
    output_dir: str
    licence: str
    name: str | None
    source: str | None
    labels: str | None
    results: tuple[str, ...]
    classes: str | None
    teacher_path: str | None
    overwrite: bool


def parse() -> Flags:
    parser = cli.Parser(
        "validate.share",
        "Make a folder that the Hugging Face Hub takes as it is: images, card, stored labels and results.",
    )
    parser.add_argument("--syn-dir", required=True, metavar="DIR", help="the set, of recover or ranking")
    parser.add_argument("--labels", metavar="DIR", help="what validate --save-labels stored for it")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="RUN",
        help="--output-dir of validate: the set's results are taken, and random images' as what they are compared with",
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--teacher-path",
        metavar="FILE",
        help="checkpoint whose order of classes the labels follow; that of the stored labels or the manifest if left "
        "out, else sorted",
    )
    order.add_argument("--classes", metavar="FILE", help="that order as the class folders' names, one a line")
    hub.add_sharing(parser, card.SOURCE)
    args = parser.parse_args()
    hub.require_licence(parser, args.licence, card.SOURCE)
    return cli.group(args, Flags)


def main() -> None:
    flags = parse()
    stored = labels_in(flags.labels) if flags.labels else []
    source = Source.of(images_of(flags.syn_dir), *order_of(flags.classes, flags.teacher_path, stored))
    check_labels(stored, source)
    results = Results.of(flags.results, source) if flags.results else None
    contents = contents_of(Facts(source, stored, results, flags.licence, flags.name, flags.source))
    settings = {
        "kind": "data set",
        "images": source.fingerprint,
        "labels": {str(labels.seed): sha256(labels.folder / INDEX) for labels in stored},
        "licence": flags.licence,
        **{name: digest(text) for name, text in contents.texts.items()},
    }
    inputs = [path for path in (flags.syn_dir, flags.labels) if path]
    written = hub.write(flags.output_dir, settings, contents, flags.overwrite, *inputs)
    found = len(results.measured) if results else 0
    seeds = f"{len(stored)} seed{'s' * (len(stored) != 1)}"
    what = f"{len(source.folder)} images, labels of {seeds}, {found} result{'s' * (found != 1)}"
    print(f"share: {what} in {flags.output_dir}" if written else f"share: {flags.output_dir} is complete")


def contents_of(facts: Facts) -> hub.Contents:
    """The files of the folder."""
    source = facts.source
    copies = {f"{IMAGES}/{path}": source.folder.root / path for path in source.folder.paths}
    for labels in facts.labels:
        files = (INDEX, *(file for file, _, _ in labels.shards))
        copies |= {folder_of("labels", labels.seed).joinpath(file).as_posix(): labels.folder / file for file in files}
    texts = {hub.CARD: card.text(facts), **(facts.results.texts if facts.results else {})}
    if source.manifest.content:
        record = {"method": source.method, **source.manifest.content}
        texts[f"{IMAGES}/{MANIFEST}"] = as_json(hub.without_folders(record))
    title = "recovered" if source.manifest.is_recovered else "selected"
    shown = ImageSet.from_folder(title, source.folder, origins.updates(source.folder.root))
    sheet = partial(gallery.draw, classes=source.folder.classes, sets=[shown])
    return hub.Contents(copies, texts, {card.SHEET: sheet})


if __name__ == "__main__":
    entry.run(main)
