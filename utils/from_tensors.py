"""Make an ImageFolder of a set that another project keeps as tensors.

    python -m utils.from_tensors FILE OUTPUT [--labels FILE] [--mean R G B --std R G B | --zca DIR] [--classes FILE]

FILE is a .pt, .pth, .npy, .npz or .safetensors with images (N, 3, H, W) or (N, H, W, 3): bytes, or floats from 0 to 1,
or normalised ones, for which --mean and --std say how, or ZCA-whitened ones, for which --zca names the training images.
Their labels (N,), or a score of each class (N, classes), lie in the same file, or in another one; beside images_best.pt
(MTT, DATM) labels_best.pt is found. Of several sets in one file (DC, DM) the first is taken. Images become PNGs of 8
bits, numbered in their order within each class. Of learnt labels only the class with the largest score is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from utils import cli
from utils.data.datasets import DATASETS, known
from utils.data.formats import TENSORS, can_be_class
from utils.data.geometry import fault_of_scale
from utils.data.image_folder import ImageFolder
from utils.data.whitening import ZCA_EPS, unwhitened
from utils.nets import harmless
from utils.nets.class_order import read_names
from utils.run import entry
from utils.run.errors import UserError, first_line, listed
from utils.run.files import replacing
from utils.run.outputs import built, check_output

IMAGES = ("images", "image", "data", "x", "image_syn", "images_best", "x_proto", "coreset_images", "syn_images")
LABELS = (
    "labels",
    "label",
    "targets",
    "target",
    "y",
    "label_syn",
    "labels_best",
    "y_proto",
    "coreset_labels",
    "syn_labels",
)
ROUNDING = 0.02  # of black and white: what saving in half precision or resizing puts outside of them


@dataclass(frozen=True)
class Flags:
    file: str
    output: str
    labels: str | None
    classes: str | None
    dataset: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    zca: str | None
    zca_eps: float | None


def parse() -> Flags:
    parser = cli.Parser("utils.from_tensors", __doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help=f"images, {', '.join(TENSORS)}")
    parser.add_argument("output", metavar="OUTPUT", help="ImageFolder to write")
    parser.add_argument("--labels", metavar="FILE", help="of the images, if they are not in FILE")
    parser.add_argument(
        "--classes", metavar="FILE", help="names of class folders in label order, one a line; else numbers"
    )
    parser.add_argument("--dataset", choices=tuple(DATASETS), help="whose mean and std the images were normalised by")
    parser.add_argument("--mean", type=cli.finite_float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--std", type=cli.positive_float, nargs=3, metavar=("R", "G", "B"))
    parser.add_argument("--zca", metavar="DIR", help="the training images, pixels from 0 to 1, that gave the whitening")
    parser.add_argument(
        "--zca-eps", type=cli.positive_float, help=f"of the whitening; {ZCA_EPS} if left out, as MTT and DATM have it"
    )
    flags = cli.group(parser.parse_args(), Flags)
    if fault := fault_of_scale(flags.mean, flags.std, "--"):
        parser.error(fault)
    if flags.zca and (flags.mean or flags.std or flags.dataset):
        parser.error("--zca: images are whitened, or normalised by --mean and --std or --dataset's; give one of them")
    if flags.zca_eps and not flags.zca:
        parser.error("--zca-eps goes with --zca; give the training images as --zca, or leave it out")
    return flags


def main() -> None:
    flags = parse()
    check_output(flags.output)
    with built(flags.output) as folder:
        content = first_set(read(flags.file), flags.file)
        images = to_pixels(find(content, IMAGES, 4, flags.file, "images (N, 3, H, W)"), flags)
        labels, num_classes = read_labels(content, len(images), flags)
        names = class_names(flags.classes, num_classes)
        say_empty([name for label, name in enumerate(names) if label not in labels])
        counts = [0] * len(names)
        for image, label in zip(images, labels.tolist()):
            with replacing(folder / names[label] / f"{counts[label]:04d}.png", flushed=False) as temporary:
                Image.fromarray(image).save(temporary)
            counts[label] += 1
    print(f"{len(images)} images of {len(names)} classes in {flags.output}")


def say_empty(names: list[str]) -> None:
    if names:
        print(f"no image has the class {listed(names, 8)}")


def read(path: str) -> Any:
    """What a file of tensors holds; nothing in it is executed. Raises UserError where it cannot be read."""
    try:
        suffix = Path(path).suffix.lower()
        if suffix == ".safetensors":
            return load_file(path)
        if suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            return dict(found) if suffix == ".npz" else found
        return harmless.load(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as tensors ({first_line(error)})") from None


def first_set(content: Any, path: str) -> Any:
    """The set in what a file holds: of DC's {"data": [[images, labels], ...], ...} the first one."""
    sets = content.get("data") if isinstance(content, dict) else None
    if not isinstance(sets, (list, tuple)) or not sets or not all(isinstance(one, (list, tuple)) for one in sets):
        return content
    if len(sets) > 1:
        print(f"{path}: holds {len(sets)} sets; the first is taken")
    return sets[0]


def find(content: Any, names: tuple[str, ...], dims: int, path: str, what: str) -> np.ndarray:
    """The array of `dims` dimensions in `content`: itself, under one of the `names`, or the only one there is.

    Raises UserError where there is none, or several.
    """
    if isinstance(content, dict):
        known_names = [name for name in content if str(name).lower() in names]
        content = [content[known_names[0]]] if known_names else list(content.values())
    parts = [_array(part) for part in (content if isinstance(content, (list, tuple)) else [content])]
    found = [part for part in parts if isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim == dims]
    if len(found) != 1:
        raise UserError(f"{path}: holds {len(found) or 'no'} arrays that could be its {what}; one is needed")
    value = found[0]
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return value


def _array(part: Any) -> Any:
    """NumPy's arrays beside tensors are read as nested lists of numbers: the array again; else `part` itself."""
    if isinstance(part, list) and part and not isinstance(part[0], torch.Tensor):
        try:
            found = np.array(part)
        except ValueError:  # lists of different lengths
            return part
        return found if found.dtype.kind in "biuf" else part
    return part


def to_pixels(images: np.ndarray, flags: Flags) -> np.ndarray:
    """uint8 (N, H, W, 3). Raises UserError for floats that no flag explains, bytes that need none, and no image."""
    if not images.size:
        raise UserError(f"{flags.file}: holds no image, its array is {images.shape}; give a file that does")
    if images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.shape[3] not in (1, 3):
        raise UserError(f"{flags.file}: its images are {images.shape[1:]}; (3, H, W) or (H, W, 3) is needed")
    images = np.repeat(images, 3, 3) if images.shape[3] == 1 else images
    given = {"--mean": flags.mean, "--std": flags.std, "--dataset": flags.dataset, "--zca": flags.zca}
    if images.dtype.kind in "biu" and (unused := " and ".join(name for name, value in given.items() if value)):
        raise UserError(
            f"{flags.file}: its images are whole numbers ({images.dtype}), so neither normalised nor whitened; leave "
            f"out {unused}"
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    facts = known(flags.dataset)
    mean, std = flags.mean or (facts and facts.mean), flags.std or (facts and facts.std)
    values = images.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError(f"{flags.file}: its images hold values that are not finite numbers")
    if flags.zca:
        values = unwhitened(values, ImageFolder(flags.zca, "--zca"), flags.zca_eps or ZCA_EPS)
    elif mean and std:
        values = values * np.array(std) + np.array(mean)
    elif values.min() < -ROUNDING or (1 + ROUNDING < values.max() and (values % 1).any()) or values.max() > 255:
        raise UserError(
            f"{flags.file}: its values go from {values.min():.3g} to {values.max():.3g}, so they are normalised; give "
            "--mean and --std, or --dataset, or --zca where they are whitened"
        )
    elif values.max() > 1 + ROUNDING:  # whole numbers to 255
        values = values / 255
    return (values * 255).round().clip(0, 255).astype(np.uint8)


def read_labels(content: Any, count: int, flags: Flags) -> tuple[np.ndarray, int]:
    """A class for each image (N,), and how many classes there are at least.

    Raises UserError where no labels are found, not as many as images, or scores that are no numbers.
    """
    path = flags.labels or beside(flags.file) or flags.file
    content = read(path) if path != flags.file else content
    scores = None
    try:
        labels = find(content, LABELS, 1, path, "labels (N,)")
    except UserError:
        try:
            scores = find(content, LABELS, 2, path, "labels")
        except UserError:
            raise UserError(f"{path}: holds no labels (N,); give the file that does as --labels") from None
        if not scores.size or np.isnan(scores).any():
            what = "are not numbers (NaN)" if scores.size else f"are {scores.shape}"
            raise UserError(
                f"{path}: scores of its labels {what}; a score of each class is needed, or labels (N,) as --labels"
            ) from None
        labels = scores[:, 0] if scores.shape[1] == 1 else scores.argmax(1)
    if len(labels) != count or labels.min() < 0 or (labels % 1).any():
        raise UserError(f"{path}: {len(labels)} labels do not fit {count} images; whole numbers from 0 are needed")
    if scores is None or scores.shape[1] == 1:
        return labels.astype(int), int(labels.max()) + 1
    if ((scores != scores.min()) & (scores != scores.max())).any():
        print(
            f"{path}: its labels are learnt scores; each image gets the class of its largest one, and no more is kept"
        )
    return labels.astype(int), scores.shape[1]


def beside(path: str) -> str | None:
    """labels_best.pt beside images_best.pt, and the like; None where there is none."""
    file = Path(path)
    other = file.with_name(file.name.replace("images", "labels", 1).replace("_zca", ""))
    if other == file or not other.is_file():
        return None
    print(f"labels: {other}")
    return str(other)


def class_names(path: str | None, least: int) -> Sequence[str]:
    """Raises UserError where the file does not name so many classes, or one that can be no folder of images."""
    if path is None:
        return [f"{label:0{len(str(least - 1))}d}" for label in range(least)]
    names = read_names(path)
    if len(names) < least:
        raise UserError(f"--classes {path}: {least} names of folders are needed, one a line")
    if wrong := [name for name in names if not can_be_class(name)]:
        raise UserError(f"--classes {path}: class '{wrong[0]}' can be no folder of images; rename it there")
    return names


if __name__ == "__main__":
    entry.run(main)
