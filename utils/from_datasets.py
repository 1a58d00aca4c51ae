"""Make an ImageFolder of a set that the library `datasets` knows or has saved.

    python -m utils.from_datasets FOLDER OUTPUT [--split train] [--image COLUMN] [--label COLUMN]

FOLDER is what `save_to_disk` wrote, or what `load_dataset` takes: parquet files, or a folder for the Hub. Images are
written byte for byte where they are stored as files, under the names that they had; so labels and results of the set
are still known to be its own. Of a folder of validate.share the manifest comes along. Nothing is downloaded.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

from PIL import Image

from utils import cli
from utils.data.formats import EXTENSIONS, can_be_class, is_image
from utils.data.manifest import MANIFEST, Manifest, images_of
from utils.run import entry
from utils.run.errors import UserError, first_line
from utils.run.files import sha256, write_json
from utils.run.outputs import built, check_output
from utils.run.packages import how_to_install, needed

SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder
PARQUET = ".parquet"


@dataclass(frozen=True)
class Flags:
    folder: str
    output: str
    split: str | None
    image: str
    label: str


def parse() -> Flags:
    parser = cli.Parser(
        "utils.from_datasets", f"{__doc__.splitlines()[0]} It needs that library ({how_to_install('datasets')})."
    )
    parser.add_argument("folder", metavar="FOLDER", help="of save_to_disk, or what load_dataset takes")
    parser.add_argument("output", metavar="OUTPUT", help="ImageFolder to write")
    parser.add_argument("--split", help="of several splits the one to take; train if left out")
    parser.add_argument("--image", default="image", metavar="COLUMN", help="of the images")
    parser.add_argument("--label", default="label", metavar="COLUMN", help="of the classes")
    return cli.group(parser.parse_args(), Flags)


def main() -> None:
    flags = parse()
    # Before the library is imported, which reads it: a name that is no folder here is none on the Hub either.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    datasets = needed("datasets", "sets of the library datasets")
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs errors, and raises them
    if not Path(flags.folder).exists():
        raise UserError(
            f"{flags.folder}: no such folder; download the set first (hf download NAME --repo-type dataset)"
        )
    check_output(flags.output, flags.folder)
    with built(flags.output) as folder, tempfile.TemporaryDirectory() as cache:
        counts = write(columns(read(datasets, flags, cache), datasets, flags), folder)
        keep_manifest(flags.folder, folder)
    print(f"{counts.total()} images of {len(counts)} classes in {flags.output}")


def read(datasets: Any, flags: Flags, cache: str) -> Any:
    """The split. Raises UserError where the library cannot read it, or there is no such split."""
    path = Path(flags.folder)
    try:
        if any((path / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(path))
        elif path.suffix == PARQUET:
            found = datasets.load_dataset("parquet", data_files=str(path), cache_dir=cache)
        else:
            found = datasets.load_dataset(str(path.resolve()), cache_dir=cache)
    except Exception as error:  # whatever the library makes of a damaged or foreign file
        raise UserError(f"{path}: cannot be read by datasets ({first_line(error)})") from None
    if not hasattr(found, "keys"):  # a split by itself
        if not flags.split or not found.split:
            if flags.split:
                print(f"{path}: is one split, and does not say which; --split {flags.split} is not used")
            return found
        found = {str(found.split).split("[")[0]: found}  # train[:50%] is of train
    split = flags.split or "train"
    if split not in found:
        raise UserError(f"{path}: has no split '{split}'; give --split: {', '.join(found)}")
    return found[split]


def columns(split: Any, datasets: Any, flags: Flags) -> Iterator[tuple[str, str, bytes]]:
    """Class, file name ("" where there was none) and bytes of each image.

    Raises UserError where the columns are no images and classes, and for a row without the one or the other.
    """
    for name in (flags.image, flags.label):
        if name not in split.features:
            raise UserError(
                f"{flags.folder}: has no column '{name}'; give --image and --label, of {', '.join(split.features)}"
            )
    if not isinstance(split.features[flags.image], datasets.Image):
        raise UserError(f"{flags.folder}: its column '{flags.image}' holds no images; give another one as --image")
    label = split.features[flags.label]
    as_name = label.int2str if isinstance(label, datasets.ClassLabel) else str

    def found() -> Iterator[tuple[str, str, bytes]]:
        for number, row in enumerate(split.cast_column(flags.image, datasets.Image(decode=False))):
            name, image = _class(row[flags.label], as_name), row[flags.image] or {}
            if name is None:
                raise UserError(
                    f"{at(number)} has no class, its '{flags.label}' is {row[flags.label]}; give another --label or "
                    "--split, or leave the row out of the set"
                )
            path, content = image.get("path") or "", image.get("bytes")
            if content is None and os.path.isfile(path):
                content = Path(path).read_bytes()
            if not content:
                missing = f"{path} is no file" if path else "it is empty"
                raise UserError(
                    f"{at(number)} has no image in '{flags.image}': {missing}; leave the row out of the set"
                )
            yield name, os.path.basename(path), content

    return found()


def at(number: int) -> str:
    """Of a row, in messages: as the library counts."""
    return f"row {number} (the first is 0)"


def _class(value: Any, as_name: Callable[[Any], str]) -> str | None:
    """None where there is no class, such as -1 in splits without labels."""
    try:
        return None if value is None else as_name(value)
    except (TypeError, ValueError, IndexError):
        return None


def write(rows: Iterator[tuple[str, str, bytes]], folder: Path) -> Counter[str]:
    """How many images there are of each class. None takes the place of another one: a taken name gets a number.

    Raises UserError for a class that can be no folder, and for what is no image of a format that is read here.
    """
    counts: Counter[str] = Counter()
    for row, (name, file, content) in enumerate(rows):
        if not can_be_class(name):
            raise UserError(f"{at(row)}: class '{name}' can be no folder of images; rename it in the set")
        if not is_image(file):
            file = f"{counts[name]:04d}{ending(content, at(row))}"
        path, number = folder / name / file, counts[name]
        while path.exists():
            path, number = path.with_name(f"{number:04d}_{file}"), number + 1
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        counts[name] += 1
    return counts


def keep_manifest(source: str, folder: Path) -> None:
    """Put the manifest of a shared set beside the images, if they are those that it names: it has their weights.

    A line says where they are not.
    """
    try:
        images = images_of(source)
        found = Manifest.of(images)
    except UserError:
        return  # a file of this name that is none of ours
    if not found.digests:
        return
    written = {path.relative_to(folder).as_posix(): sha256(path) for path in folder.glob("*/*")}
    if written == found.digests:
        write_json(folder / MANIFEST, found.content)
    else:
        print(
            f"{Path(images) / MANIFEST}: is left out, with the method's name and the weights of images if it "
            "has any: these are not the images that it names"
        )


def ending(content: bytes, where: str) -> str:
    """By the format of an image. Raises UserError where it is none, or of a format that is not read here."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = image.format
    except Exception as error:
        raise UserError(f"{where} has an image that cannot be read ({first_line(error)})") from None
    own, endings = f".{found.lower()}", Image.registered_extensions()
    read = [name for name in (own, *EXTENSIONS) if name in EXTENSIONS and endings.get(name) == found]
    if not read:
        raise UserError(f"{where} has an image of the format {found}, which is not read here; convert it to PNG")
    return ".jpg" if ".jpg" in read else read[0]


if __name__ == "__main__":
    entry.run(main)
