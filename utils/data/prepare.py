"""Make train/ and val/ ImageFolders of a known data set.

    python -m utils.data.prepare NAME [--source ARCHIVE_OR_FOLDER] [--output DIR]

Without --source the data is downloaded where torchvision can; with it, nothing is. A source is an archive or a folder
in the layout that the data set is published in, or already an ImageFolder with train/ and val/ (or test/). What lies in
a local folder is linked, not copied. The output appears only when everything is done. PyTorch is loaded for a download
only: it takes seconds.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import socket
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.data.datasets import DATASETS, DataSet
from utils.data.formats import folders_in, is_image
from utils.data.layouts import LAYOUTS, Splits
from utils.run import boundary
from utils.run.errors import UserError, first_line
from utils.run.outputs import built_under_lock, check_output, locked

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60  # seconds that a download waits for a server


@dataclass(frozen=True)
class Flags:
    """The command line. `source` None: download; `output` is absolute."""

    name: str
    source: Path | None
    output: Path


def parse(argv: Sequence[str] | None = None) -> Flags:
    parser = boundary.Parser("utils.data.prepare", __doc__.splitlines()[0])
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--source", type=Path, help="an archive or a folder to take the data from, instead of a download"
    )
    parser.add_argument("--output", type=Path, help="default: data/NAME in the repository's root")
    args = parser.parse_args(argv)
    # A link to an empty folder stays a link: the data set is built, and renamed, where it leads.
    return Flags(args.name, args.source, Path(os.path.realpath(args.output or ROOT / "data" / args.name)))


def main(argv: Sequence[str] | None = None) -> None:
    flags = parse(argv)
    output = flags.output
    check_output(output)
    with locked(output):
        prepare_once(flags, output)
    print_summary(flags.name, output)


def prepare_once(flags: Flags, output: Path) -> None:
    """Raises UserError if something else is there."""
    if (output / "train").is_dir() and (output / "val").is_dir():
        print(f"{output} exists already and is left as it is")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists and is no finished data set: move it away, or choose another --output")
    else:
        prepare(flags.name, flags.source, output)


def prepare(name: str, source: Path | None, output: Path) -> None:
    """Write the data set `name` to `output`, from `source` or a download.

    It is built beside `output` and renamed at the end, so that a killed run leaves nothing that looks finished.
    Raises UserError where the source is missing, damaged or another data set, or the download fails.
    """
    dataset = DATASETS[name]
    with built_under_lock(output) as partial:
        scratch = partial / "source"
        scratch.mkdir()
        source = Path(os.path.realpath(source)) if source else download(name, dataset, scratch)
        splits = read(source, dataset, scratch)
        check(splits, name, source)
        write(splits, partial, scratch)
        shutil.rmtree(scratch)


def download(name: str, dataset: DataSet, folder: Path) -> Path:
    """Where the data lies: in this repository, or in `folder` by torchvision. Raises UserError where neither works."""
    if dataset.embedded:
        return ROOT / dataset.embedded
    reason = "cannot be downloaded by this command"
    if dataset.torchvision:
        from torchvision import datasets  # which loads PyTorch

        try:
            socket.setdefaulttimeout(TIMEOUT)
            getattr(datasets, dataset.torchvision.name)(folder, download=True, **dataset.torchvision.options)
            return folder / dataset.torchvision.folder
        except (OSError, RuntimeError) as error:  # URLError is an OSError
            reason = f"could not be downloaded ({first_line(error)})"
    home = f" (see {dataset.home})" if dataset.home else ""
    raise UserError(
        f"{name} {reason}: get {dataset.source}{home} and pass it, "
        f"as in: bash scripts/prepare_data.sh {name} --source PATH"
    )


def read(source: Path, dataset: DataSet, scratch: Path) -> Splits:
    """The splits of a source; an archive is unpacked into `scratch` first. Raises UserError if no layout fits."""
    if not source.exists():
        raise UserError(f"no such file or folder: {source}")
    if source.is_file():
        unpack(source, scratch)
        source = scratch
    # What an archive or a download holds is often one folder down.
    folders = [source, *folders_in(source)]
    for layout in dataset.layouts:
        for folder in folders:
            splits = LAYOUTS[layout](folder, dataset)
            if splits:
                return splits
    if source != scratch and (source / dataset.source).is_file():
        return read(source / dataset.source, dataset, scratch)
    raise UserError(
        f"{source} has no layout that is known here: expected {dataset.source}, what it unpacks to, "
        "or train/ and val/ (or test/) with one folder of images per class"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Extract a tar or zip archive into `folder`. Raises UserError if it is damaged, or holds names outside of it."""
    try:
        bar = tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=None)
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped, bar:
                for name in zipped.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise UserError(f"{archive} holds the unsafe name {name!r}, which leads out of its folder")
                    zipped.extract(name, folder)
                    bar.update()
        elif tarfile.is_tarfile(archive):
            if not hasattr(tarfile, "data_filter"):
                raise UserError("this Python cannot extract tar archives safely: use 3.10.12, 3.11.4 or any newer one")
            with tarfile.open(archive) as tar, bar:
                for member in tar:
                    tar.extract(member, folder, filter="data")
                    bar.update()
        else:
            raise UserError(f"{archive} is not a readable tar or zip archive, or is damaged: fetch it again")
    except getattr(tarfile, "FilterError", ()) as error:
        raise UserError(f"{archive} holds an unsafe name: {first_line(error)}") from error
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        gzip.BadGzipFile,
        RuntimeError,  # a zip that is encrypted, or compressed in an unknown way
    ) as error:
        raise UserError(
            f"{archive} cannot be unpacked, it may be damaged ({first_line(error)}): fetch it again"
        ) from error


def check(splits: Splits, name: str, source: Path) -> None:
    """Raises UserError unless the splits have the same classes, and as many as the data set."""
    train, val = set(splits["train"]), set(splits["val"])
    if train != val:
        odd = sorted(train ^ val)[0]
        raise UserError(f"{source}: the class {odd} is in {'train' if odd in train else 'val'} only")
    if len(train) != DATASETS[name].classes:
        raise UserError(f"{source} has {len(train)} classes, and {name} has {DATASETS[name].classes}")


def write(splits: Splits, folder: Path, scratch: Path) -> None:
    """Write folder/train/CLASS/ and folder/val/CLASS/; arrays become PNG files numbered in their order."""
    tasks = [(split, name, images) for split in ("train", "val") for name, images in sorted(splits[split].items())]
    for split, name, images in tqdm(tasks, desc="writing", unit=" classes", disable=None):
        target = folder / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(images, Path):
            _move_or_link(images, target, scratch)
            continue
        target.mkdir()
        for k, image in enumerate(images):
            if isinstance(image, Path):
                _move_or_link(image, target / image.name, scratch)
            else:
                Image.fromarray(np.ascontiguousarray(image)).save(target / f"{k:04d}.png")


def _move_or_link(path: Path, target: Path, scratch: Path) -> None:
    """Move what was unpacked into `scratch`; link what is the user's own."""
    if path.is_relative_to(scratch):
        path.rename(target)
    else:
        target.symlink_to(path.resolve())


def print_summary(name: str, output: Path) -> None:
    """Print what a script's variables have to be, and how many images there are. Raises UserError for other classes."""
    dataset = DATASETS[name]
    shown = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    counts = []
    for split in "train", "val":
        classes = folders_in(output / split)
        if len(classes) != dataset.classes:
            raise UserError(
                f"{output / split} has {len(classes)} classes, and {name} has {dataset.classes}: "
                "choose another --output"
            )
        counts.append(sum(is_image(image) for d in classes for image in d.iterdir()))
        print(f"{split.upper()}_DIR={shown / split}    {len(classes)} classes, {counts[-1]} images")
    if dataset.images and tuple(counts) != dataset.images:
        print(f"note: {name} as published has {dataset.images[0]} training and {dataset.images[1]} test images")


def run(argv: Sequence[str] | None = None) -> int:
    """Not by utils.run.entry.run, which loads PyTorch. Returns the exit code."""
    return boundary.run(lambda: main(argv))


if __name__ == "__main__":
    sys.exit(run())
