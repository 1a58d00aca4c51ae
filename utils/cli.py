"""Command lines: the arguments that have one name in every stage, and what they stand for."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Callable, Sequence, TypeVar, get_type_hints

from utils.data import input_size
from utils.data.datasets import DATASETS
from utils.data.formats import require_unicode
from utils.data.geometry import Geometry, GeometryFlags
from utils.data.sizes import MAX_SIZE, MIN_SIZE
from utils.fit import loggers
from utils.fit.batch_size import find_evaluation_batch_size
from utils.fit.loggers import Logger
from utils.nets.ensemble import agreed
from utils.nets.models import STEMS
from utils.nets.teacher import Teacher, load_teacher
from utils.run import boundary, waiting
from utils.run.device import COMPILE, DETERMINISTIC, PRECISIONS, Runtime
from utils.run.errors import UserError
from utils.run.memory import AUTO

Group = TypeVar("Group")
CLASSES_BY = ("name", "position")


class Parser(boundary.Parser):
    """Its defaults show in --help."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog, description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Raises UserError for a word that is not UTF-8: manifests and messages could not name it."""
        for word in sys.argv[1:] if args is None else args:
            require_unicode(word)
        return super().parse_args(args, namespace)


def group(args: argparse.Namespace, kind: type[Group], **given: Any) -> Group:
    """The arguments that a dataclass has fields for, as one object; flags are given to functions in this form.

    A field of a dataclass's type holds a group itself. `given` are fields that are no flags, or not as given.
    """
    kinds = get_type_hints(kind)
    for name in kinds.keys() - given.keys():
        if is_dataclass(kinds[name]):
            given[name] = group(args, kinds[name])
        else:
            value = getattr(args, name)
            given[name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)


@dataclass(frozen=True)
class MachineFlags:
    """Where a stage computes."""

    batch_size: int | str | None
    workers: int | None
    device: str
    precision: str
    compile: str
    deterministic: str

    def runtime(self) -> Runtime:
        return Runtime.create(self.device, self.precision, self.compile, self.deterministic)

    @property
    def finds_batch_size(self) -> bool:
        return self.batch_size == AUTO

    def batch_size_for(self, teacher: Teacher, default: int, output: str | Path, runtime: Runtime) -> int:
        """Images that a teacher looks at together: as asked, or the largest number that fits."""
        if self.finds_batch_size:
            return find_evaluation_batch_size(default, output, teacher, runtime)
        return self.batch_size or default


@dataclass(frozen=True)
class TrainingFlags:
    """How a network is trained, whatever the recipe."""

    log: str | None
    save_every: float  # minutes
    sync_bn: bool
    wait: float  # minutes, for another rank

    def logger(self, folder: Path, name: str, settings: dict[str, Any]) -> Logger:
        return loggers.start(self.log, folder, name, settings)


@dataclass(frozen=True)
class TeacherFlags:
    """Which networks guide or label: one, or several where the stage takes them."""

    teacher_arch: tuple[str, ...] | None
    teacher_path: tuple[str, ...] | None
    classes: str | None = None  # the file that gives the order of its classes

    def load(
        self, given: GeometryFlags, images_dir: str | None, role: str, others: Sequence[str] = ()
    ) -> list[Teacher]:
        """The teachers. The images in `images_dir`, or its manifest or those in `others`, tell the input size if
        nothing else does.

        Raises UserError where they differ in classes or input size, or one of them does not fit.
        """
        size = cache(partial(input_size.of_images, images_dir, role, others)) if images_dir else None
        teachers = []
        for path, arch in self._files():
            teachers.append(load_teacher(arch, path, given, size, self.classes))
            if teachers[-1].assumed:
                name = path or f"torchvision's {arch}"
                print(f"{name}: does not say everything; assumed {', '.join(teachers[-1].assumed)}")
        return agreed(teachers, [path for path, _ in self._files()])

    def again(self, given: GeometryFlags, geometry: Geometry) -> list[Teacher]:
        """The teachers that `load` gave, with their input size in `geometry`, as the files have them: unchanged."""
        size = geometry.input_size, "before"
        return [load_teacher(arch, path, given, lambda: size, self.classes) for path, arch in self._files()]

    def _files(self) -> list[tuple[str | None, str | None]]:
        """The path and the architecture of each teacher. Raises UserError where their numbers differ."""
        paths = self.teacher_path or (None,) * len(self.teacher_arch or (None,))
        archs = self.teacher_arch or (None,) * len(paths)
        if len(archs) == 1:
            archs *= len(paths)
        if len(archs) != len(paths):
            raise UserError(f"{len(paths)} --teacher-path need one --teacher-arch or {len(paths)}, not {len(archs)}")
        return list(zip(paths, archs))


def spelled(flag: str) -> str:
    """How a flag of that name is given: batch_size is --batch-size."""
    return f"--{flag.replace('_', '-')}"


@dataclass(frozen=True)
class Number:
    """The type of a flag: numbers of a kind that fit, of which `words` tell, or one word in their place."""

    kind: type
    words: str
    fits: Callable[[Any], bool]
    word: str | None = None

    def __call__(self, text: str) -> Any:
        if text == self.word:
            return text
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not (abs(value) < math.inf and self.fits(value)):
            taken = f"not {self.words}" if self.word is None else f"neither {self.words} nor {self.word}"
            raise argparse.ArgumentTypeError(f"'{text}' is {taken}")
        return value


whole = Number(int, "a whole number", lambda value: True)
positive = Number(int, "a whole number of 1 or more", lambda value: value >= 1)
batch_size = replace(positive, word=AUTO)
non_negative = Number(int, "a whole number of 0 or more", lambda value: value >= 0)
pixels = Number(int, f"a whole number of {MIN_SIZE} to {MAX_SIZE}", lambda value: MIN_SIZE <= value <= MAX_SIZE)
finite_float = Number(float, "a finite number", lambda value: True)
non_negative_float = Number(float, "a number of 0 or more", lambda value: value >= 0)
positive_float = Number(float, "a number above 0", lambda value: value > 0)
fraction = Number(float, "a number of 0 to 1", lambda value: 0 <= value <= 1)
positive_fraction = Number(float, "a number above 0 and of at most 1", lambda value: 0 < value <= 1)


def add_common(parser: Parser, batch_help: str) -> None:
    """What every stage takes."""
    add_data(parser, batch_help)
    parser.add_argument("--seed", type=non_negative, default=0, help="of all that is drawn")
    parser.add_argument("--overwrite", action="store_true", help="replace an output of another run")


def add_geometry(group: argparse._ActionsContainer) -> None:
    """The flags of GeometryFlags."""
    group.add_argument(
        "--dataset", metavar="NAME", help=f"a known data set's facts and defaults: {', '.join(DATASETS)}"
    )
    group.add_argument(
        "--input-size",
        type=pixels,
        metavar="PIXELS",
        help="the teacher's, the data set's, a manifest's or the images' if left out",
    )
    for name, kind in (("--mean", finite_float), ("--std", positive_float)):
        group.add_argument(
            name,
            type=kind,
            nargs=3,
            metavar=("R", "G", "B"),
            help="normalisation; the teacher's, or ImageNet's if its file has none; without a teacher the data set's",
        )
    group.add_argument("--stem", choices=STEMS, help="cifar for inputs of 64 pixels and less if left out")


def add_data(parser: Parser, batch_help: str) -> None:
    """The flags of GeometryFlags and MachineFlags."""
    group = parser.add_argument_group("data and machine")
    add_geometry(group)
    group.add_argument("--batch-size", type=batch_size, metavar="N", help=f"{batch_help}; auto: halved until it fits")
    group.add_argument(
        "--workers", type=non_negative, help="processes (threads when checking) that read images; chosen if left out"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="auto", help="auto: bf16, else fp16, where a unit for it is"
    )
    group.add_argument("--compile", choices=COMPILE, default="auto", help="auto: if the steps ahead repay it")
    group.add_argument(
        "--deterministic",
        choices=DETERMINISTIC,
        default="on",
        help="on a GPU: the same command gives the same bytes; off may be faster; nothing on a CPU",
    )


def add_save_every(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--save-every", type=non_negative_float, default=5.0, metavar="MINUTES", help=f"how often {what} is saved"
    )


def add_training(parser: Parser, what: str, folder: str) -> None:
    """The flags of TrainingFlags: `what` is saved, and `folder` holds the curves."""
    parser.add_argument(
        "--log", choices=loggers.KINDS, help=f"curves, in {folder} (wandb: sent too, unless WANDB_MODE=offline)"
    )
    add_save_every(parser, what)
    parser.add_argument(
        "--sync-bn", action="store_true", help="under torchrun: BatchNorm over the global batch (GPUs only)"
    )
    parser.add_argument(
        "--wait",
        type=positive_float,
        default=waiting.MINUTES,
        metavar="MINUTES",
        help="under torchrun: how long a process waits for one that shows no sign of life",
    )


def add_teacher(parser: Parser, several: str = "") -> None:
    """The flags of TeacherFlags. `several` says what several teachers are for, where the stage takes them."""
    group = parser.add_argument_group("teacher")
    count = "+" if several else 1
    more = f"; several: {several}" if several else ""
    group.add_argument("--teacher-arch", nargs=count, metavar="ARCH", help="read from the checkpoint if it says")
    group.add_argument(
        "--teacher-path",
        nargs=count,
        metavar="FILE",
        help=f"checkpoint; for imagenet1k torchvision's weights if left out{more}",
    )
    group.add_argument(
        "--classes",
        metavar="FILE",
        help="the class folders' names in the teacher's label order, one a line; read from the checkpoint if it names "
        "them, else sorted",
    )


def add_classes_by(parser: Parser, folder: str, owner: str) -> None:
    """--classes-by: how the class folders of the flag `folder` are those of their `owner`."""
    parser.add_argument(
        "--classes-by",
        choices=CLASSES_BY,
        default="name",
        help=f"how the class folders of {folder} are those of {owner}; position: where they have other names the k-th, "
        "by number or sorted, is class k in the teacher's order",
    )


def refuse_single_images(parser: Parser, args: argparse.Namespace) -> None:
    if args.batch_size == 1:
        parser.error("--batch-size 1: a single image has no variance for BatchNorm; give 2 or more")
