"""Arguments that have one name in every stage, and the boundary where errors become one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import shlex
import signal
import sys
from typing import Callable

from utils import log, memory, ranks
from utils.checkpoints import Teacher, load_teacher
from utils.datasets import IMAGENET_MEAN, IMAGENET_STD, KNOWN, known
from utils.files import LOCKS, UserError
from utils.images import SMALLEST, ImageFolder, common_size
from utils.models import STEMS, default_stem
from utils.runtime import Runtime
from utils.state import SIGNALS, Stopped


# What a disk or its rights do to a correct program.
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
                  errno.ENOENT, errno.ENOTDIR)


class Parser(argparse.ArgumentParser):
    """argparse whose error is one line, and whose defaults show in --help."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=f"python -m {prog}", description=description, allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def batch_size(text: str) -> int | str:
    return text if text == memory.AUTO else positive(text)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 0 or more")
    return int(text)


def pixels(text: str) -> int:
    if not text.isdigit() or int(text) < SMALLEST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of {SMALLEST} or more")
    return int(text)


def amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of 0 or more")
    return value


def number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    return value


def spread(text: str) -> float:
    value = amount(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


def fraction(text: str) -> float:
    value = amount(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 1")
    return value


def share(text: str) -> float:
    value = fraction(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not above 0")
    return value


def add_common(parser: Parser, batch_help: str = "images per batch") -> None:
    """What every stage takes."""
    add_data(parser, batch_help)
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace an output of another run")


def add_data(parser: Parser, batch_help: str = "images per batch") -> None:
    group = parser.add_argument_group("data and machine")
    group.add_argument("--dataset", metavar="NAME", help=f"a known data set's facts and defaults: {', '.join(KNOWN)}")
    group.add_argument("--input-size", type=pixels, metavar="PIXELS", help="read from the teacher or the images if left out")
    group.add_argument("--mean", type=number, nargs=3, metavar=("R", "G", "B"), help="normalisation; read from the teacher")
    group.add_argument("--std", type=spread, nargs=3, metavar=("R", "G", "B"), help="normalisation; read from the teacher")
    group.add_argument("--stem", choices=STEMS, help="cifar for inputs of 64 pixels and less if left out")
    group.add_argument("--batch-size", type=batch_size, metavar="N", help=f"{batch_help}; auto: halved until it fits")
    group.add_argument("--workers", type=count, help="processes (threads when checking) that read images; chosen if left out")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto",
                       help="auto: bf16 where a unit for it is")
    group.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="auto: if the steps ahead repay it")


def add_log(parser: Parser, folder: str) -> None:
    parser.add_argument("--log", choices=log.KINDS, help=f"curves, in {folder} (wandb: sent too, unless WANDB_MODE=offline)")


def add_save_every(parser: Parser, what: str) -> None:
    parser.add_argument("--save-every", type=amount, default=5.0, metavar="MINUTES", help=f"how often {what} is saved")


def add_joint(parser: Parser, what: str) -> None:
    """What the stages take whose ranks train one network together."""
    add_save_every(parser, what)
    parser.add_argument("--sync-bn", action="store_true", help="under torchrun: BatchNorm over the global batch (GPUs only)")


def refuse_single_images(parser: Parser, args: argparse.Namespace) -> None:
    if args.batch_size == 1:
        parser.error("--batch-size 1: a single image has no variance for BatchNorm; give 2 or more")


def add_teacher(parser: Parser) -> None:
    group = parser.add_argument_group("teacher")
    group.add_argument("--teacher-arch", metavar="ARCH", help="read from the checkpoint if it says")
    group.add_argument("--teacher-path", metavar="FILE", help="checkpoint; for imagenet1k torchvision's weights if left out")


def runtime(args: argparse.Namespace) -> Runtime:
    return Runtime.create(args.device, args.precision, args.compile)


def teacher(args: argparse.Namespace, images_dir: str | None, role: str) -> Teacher:
    """The teacher that the arguments name; the images in `images_dir` tell the input size if nothing else does."""
    def size_of_images() -> int:
        return common_size(ImageFolder(images_dir, role).load(args.workers))

    found = load_teacher(args.teacher_arch, args.teacher_path, dataset=args.dataset, input_size=args.input_size,
                         stem=args.stem, mean=args.mean, std=args.std,
                         size_of_images=size_of_images if images_dir else None)
    if found.assumed:
        print(f"{args.teacher_path}: does not say everything; assumed {', '.join(found.assumed)}")
    return found


def geometry(args: argparse.Namespace, folder: ImageFolder) -> tuple[int, str, tuple, tuple]:
    """(input size, stem, mean, std) where no teacher has them yet: the flags, else the data set's, else the images'.

    Raises UserError if the folder has not as many classes as the data set.
    """
    facts = known(args.dataset)
    if facts and facts.classes != len(folder.classes):
        raise UserError(f"{folder.role} {folder.root}: has {len(folder.classes)} classes, {args.dataset} has "
                        f"{facts.classes}; leave out --dataset for a data set of your own")
    size = args.input_size or (facts.input_size if facts else common_size(folder.load(args.workers)))
    return (size, args.stem or default_stem(size), tuple(args.mean or (facts.mean if facts else IMAGENET_MEAN)),
            tuple(args.std or (facts.std if facts else IMAGENET_STD)))


def folder_for(found: Teacher, path: str, role: str) -> ImageFolder:
    """The ImageFolder at `path` with labels in the teacher's order. Raises UserError where its classes differ."""
    folder = ImageFolder(path, role, found.classes)
    if len(folder.classes) != found.num_classes:
        raise UserError(f"{role} {path}: has {len(folder.classes)} classes, the teacher knows {found.num_classes}; "
                        "give the images that it was trained on, or another --teacher-path")
    return folder


def fail(message: object, code: int = 2) -> None:
    """End with one line of error. Of several ranks the first one to fail says it."""
    if ranks.first_to_fail():
        start = "" if ranks.speaks() else "\n"  # the bar of the rank that speaks may stand in this line
        sys.stderr.write(f"{start}error: {' '.join(str(message).split())}\n")
    sys.exit(code)


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; show a UserError as one line and end with exit code 2."""
    try:
        with SIGNALS.listening(), LOCKS.releasing(), contextlib.ExitStack() as silence:
            if not ranks.speaks():
                silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
            main()
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output, head for one, has seen enough; the interpreter would complain at its own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        fail(f"{error.filename or 'writing'}: {error.strerror}; what was finished before is whole, and the same command "
             "goes on when that is mended")
    except RuntimeError as error:
        if not ranks.is_loss_of_contact(error):
            raise
        if SIGNALS.received:  # which has ended the other ranks, too
            sys.exit(128 + SIGNALS.received)
        fail("another rank has ended, and this one cannot go on without it; what was saved is whole, and the same command "
             "goes on with it")
    except (Stopped, KeyboardInterrupt) as stopped:
        if ranks.speaks():
            print(f"stopped by {stopped or 'SIGINT'}; what is done is saved, and the same command goes on with it: {_command()}",
                  file=sys.stderr)
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))


def _command() -> str:
    """What the user gave, to be given again."""
    module = sys.modules["__main__"].__spec__
    words = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    start = ["torchrun", "..."] if ranks.launched() else ["python"]
    return shlex.join([*start, *words, *sys.argv[1:]])
