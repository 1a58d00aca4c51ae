"""The command line of validate."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable

from utils import cli
from utils.cli import MachineFlags, TeacherFlags, TrainingFlags
from utils.data.geometry import GeometryFlags
from utils.data.manifest import Manifest, images_of
from utils.fit import loggers
from utils.nets import models
from utils.run import registry
from utils.run.errors import UserError
from utils.run.memory import AUTO
from validate.augment import ALPHA, BATCH_AUGMENTS
from validate.optim import LR_SCHEDULES, OPTIMIZERS
from validate.protocols import DELT, OF_SET, PROTOCOLS, RECIPE_LR, SEARCH, SEARCHED, recipes
from validate.targets import LOSSES

STATISTICS = ("running", "batch")

# Flags that not every protocol reads. These are read where an entry of one of the TABLES names them:
OF_ENTRIES = ("class_weight", "momentum", "lr_steps", "lr_factor")
TABLES = {"loss": LOSSES, "optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES}


def _at_temperature(settings: dict[str, Any]) -> bool:
    loss = LOSSES[settings["loss"] or "kl"]
    return settings["labels"] == "soft" and (loss.target == "probabilities" or "temperature" in loss.reads)


# And of these: what a protocol has to have, and whether one of these settings has it. Without words a flag is never
# refused: several commands of a comparison share it.
NEEDS: dict[str, tuple[str | None, Callable[[dict[str, Any]], bool]]] = {
    "teacher_statistics": ("--labels soft", lambda one: one["labels"] == "soft"),
    "tile_share": ("--tiles set, 2 or more", lambda one: one["tiles"] != 1),
    "temperature": (None, _at_temperature),
}


@dataclass(frozen=True)
class LabelFlags:
    """Soft labels on disk."""

    save_labels: str | None
    load_labels: str | None
    top_k: int | None


@dataclass(frozen=True)
class Job:
    """The command line."""

    sets: dict[str, str]  # folder -> what to call the set
    val_dir: str
    classes_by: str  # name or position
    output_dir: Path
    student_arch: tuple[str, ...]  # the teacher's if empty
    protocols: dict[str, dict[str, Any]]  # what to call them -> their settings
    seeds: range
    ipc: int | None
    evaluations: int
    labels: LabelFlags
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags
    training: TrainingFlags
    overwrite: bool
    arguments: dict[str, Any]  # as they were given, for the results

    @property
    def has_soft_labels(self) -> bool:
        return any(settings["labels"] == "soft" for settings in self.protocols.values())

    def of_images(self, dataset: str | None, input_size: int) -> Job:
        """With the protocols for images of a known data set, or of so many pixels where nobody names one.

        Raises UserError for a flag that none of them reads.
        """
        protocols = chosen_protocols(self.arguments, dataset, input_size)
        say_unread(self.arguments, protocols)
        say_kept_rates(self.arguments, recipes(dataset, input_size))
        return replace(self, protocols=protocols)


def parse() -> Job:
    parser = cli.Parser(
        "validate",
        "Train students from scratch on one or several sets of images under one protocol, with the same seeds and "
        "updates for all; report their top-1.",
    )
    parser.add_argument(
        "--syn-dir",
        required=True,
        nargs="+",
        metavar="DIR",
        help="one or several, any ImageFolder: distilled, selected, or whole; or a folder of python -m validate.share",
    )
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure on")
    cli.add_classes_by(parser, "--syn-dir", "--val-dir")
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets results.csv and results/*.json")
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help="free text for the results, one for each --syn-dir (what was changed stands behind its recipe's name); "
        "the method in its manifest, or the folder's name, if left out",
    )
    parser.add_argument(
        "--student-arch",
        nargs="+",
        metavar="ARCH",
        help=f"one or several: {models.own()}, torchvision's names, timm/NAME; the teacher's if left out",
    )
    parser.add_argument("--seeds", type=cli.positive, default=3, help="how many, counted from --seed")
    parser.add_argument("--ipc", type=cli.positive, help="take the first so many images of each class; all if left out")
    parser.add_argument("--evaluations", type=cli.positive, default=3, help="on the test set, evenly over the epochs")
    cli.add_training(parser, "the student in training", "OUTPUT_DIR/logs")
    add_protocol(parser)
    group = parser.add_argument_group("soft labels on disk")
    group.add_argument(
        "--save-labels", metavar="DIR", help="store what the teacher says of every view, and train on it"
    )
    group.add_argument("--load-labels", metavar="DIR", help="train on stored labels, without any teacher")
    group.add_argument(
        "--top-k",
        type=cli.positive,
        metavar="K",
        help="with --save-labels: keep the K largest probabilities; the other classes share the rest",
    )
    cli.add_teacher(parser, several="the mean of their logits")
    cli.add_common(parser, "images per step; the protocol's if left out")
    args = parser.parse_args()
    return _job(parser, args)


def add_protocol(parser: cli.Parser) -> None:
    group = parser.add_argument_group("protocol", "given flags win over the protocol, and show in its name")
    group.add_argument(
        "--protocol", choices=tuple(PROTOCOLS), nargs="+", default=["delt"], help="one or several in turn"
    )
    group.add_argument(
        "--shared",
        action="store_true",
        help="the flags are given to several protocols: what these do not read is left out, and a line says so",
    )
    group.add_argument("--labels", choices=("soft", "hard"), help="soft: the teacher labels each batch")
    group.add_argument(
        "--teacher-statistics",
        choices=STATISTICS,
        help="by which the teachers' BatchNorms normalise; batch: of each batch, or of each of its parts",
    )
    group.add_argument(
        "--loss", choices=tuple(LOSSES), help="kl or mse for soft labels, ce for hard ones; the protocol's if left out"
    )
    group.add_argument(
        "--class-weight",
        type=cli.non_negative_float,
        help=f"with {need('class_weight')}: of the cross-entropy to the image's class",
    )
    group.add_argument("--image-weights", choices=("on", "off"), help="those of the set's manifest, where it has any")
    group.add_argument("--epochs", type=cli.positive, help="of training")
    group.add_argument(
        "--accumulate", type=cli.positive, metavar="N", help="parts of a batch, whose gradients a step adds up"
    )
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), help="of the students")
    factors = ", ".join(f"{factor:g}" for factor in SEARCHED)
    group.add_argument(
        "--lr",
        type=rate,
        metavar="LR",
        help="the protocol's, or the published one for the student, if left out; search: for each set the best of "
        f"{factors} times that, by the top-1 of a student of the first seed",
    )
    group.add_argument("--momentum", type=cli.fraction, help=f"with {need('momentum')}")
    group.add_argument("--lr-schedule", choices=tuple(LR_SCHEDULES), help="half-cosine ends at half the rate")
    group.add_argument(
        "--lr-steps",
        type=cli.positive_fraction,
        nargs="+",
        metavar="SHARE",
        help=f"with {need('lr_steps')}: shares of the epochs",
    )
    group.add_argument(
        "--lr-factor", type=cli.positive_fraction, help=f"with {need('lr_factor')}: of the rate, at each of them"
    )
    group.add_argument("--weight-decay", type=cli.non_negative_float, help="of tensors with two dimensions or more")
    group.add_argument(
        "--weight-average",
        type=decay,
        metavar="DECAY",
        help="of an average of the student's weights over steps, which is tested in its place; 0: none",
    )
    group.add_argument(
        "--bn-epochs",
        type=cli.non_negative,
        metavar="N",
        help="of batches by which BatchNorm's statistics are recomputed before a test; 0: as training left them",
    )
    group.add_argument(
        "--temperature", type=cli.positive_float, help="20, and 4 for mixup, if left out; 1 with the loss ce"
    )
    group.add_argument("--mix", choices=tuple(ALPHA), help="two images of a batch, and their labels")
    group.add_argument("--rand-augment", metavar="CONFIG", help="timm's, as rand-m6-n2-mstd1.0; torchvision; none")
    group.add_argument(
        "--shuffle-patches",
        type=cli.positive,
        metavar="N",
        help="shuffle N strips of columns and of rows, for collages of N x N images",
    )
    group.add_argument(
        "--tiles",
        type=tiles,
        metavar="N",
        help="along a side of a collage; 1: no collage; set: as its manifest says",
    )
    group.add_argument("--tile-share", type=cli.fraction, help="probability that a view shows one tile, enlarged")
    group.add_argument("--batch-augment", choices=BATCH_AUGMENTS, help="dsa: differentiable augmentation (CIM)")
    group.add_argument("--min-scale", type=cli.positive_fraction, help="smallest share of the image in a crop")
    group.add_argument("--max-scale", type=cli.positive_fraction, help="largest; no crop if both are 1")
    group.add_argument("--flip", type=cli.fraction, help="probability of a horizontal flip")


rate = replace(cli.non_negative_float, word=SEARCH)
tiles = replace(cli.positive, word=OF_SET)


def decay(text: str) -> float:
    value = cli.fraction(text)
    if value == 1:
        raise argparse.ArgumentTypeError("'1' would keep the first weights for ever; give less, such as 0.99")
    return value


def chosen_protocols(flags: dict[str, Any], dataset: str | None, input_size: int | None) -> dict[str, dict[str, Any]]:
    """What to call each protocol, and its settings for a data set, or for images of `input_size` pixels, if known."""
    given = {name: flags[name] for name in DELT}
    given["lr_steps"] = tuple(flags["lr_steps"]) if flags["lr_steps"] else None
    # The published size of each protocol and set is where the search for one that fits begins.
    given["batch_size"] = None if flags["batch_size"] == AUTO else flags["batch_size"]
    known = recipes(dataset, input_size)
    found = {}
    for name in flags["protocol"]:
        settings = {**known[name], **{flag: value for flag, value in given.items() if value is not None}}
        # What it does not read must not part its rows from those that were measured alike.
        own = {flag: value if reads(settings, flag) else None for flag, value in given.items()}
        title, settings = registry.with_changes(known, name, own)
        found[title] = {**settings, RECIPE_LR: known[name]["lr"]} if settings["lr"] == SEARCH else settings
    return found


def reads(settings: dict[str, Any], flag: str) -> bool:
    """Whether a protocol of these settings reads the flag."""
    if flag not in OF_ENTRIES:
        return flag not in NEEDS or NEEDS[flag][1](settings)
    # What is left open, or to the set, is none of those that read such a flag.
    entries = (table.get(settings[name]) for name, table in TABLES.items())
    return any(entry and flag in entry.reads for entry in entries)


def need(flag: str) -> str | None:
    """What a protocol has to have to read the flag, in words."""
    if flag not in OF_ENTRIES:
        return NEEDS[flag][0]
    readers = {name: [key for key in table if flag in table[key].reads] for name, table in TABLES.items()}
    return " or ".join(f"{cli.spelled(name)} {' or '.join(keys)}" for name, keys in readers.items() if keys)


def say_unread(flags: dict[str, Any], protocols: dict[str, dict[str, Any]]) -> None:
    """Name the protocols that do not read what was given. Raises UserError where none does and it is not shared."""
    for flag in (*OF_ENTRIES, *NEEDS):
        if flags[flag] is None:
            continue
        name = cli.spelled(flag)
        unread = [title for title, settings in protocols.items() if not reads(settings, flag)]
        if need(flag) and len(unread) == len(protocols) and not flags["shared"]:
            raise UserError(f"{name} does nothing without {need(flag)}")
        print(*(f"validate: {title} reads no {name}\n" for title in unread), sep="", end="")


def say_kept_rates(flags: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """Say where another optimiser is given, and not its rate or weight decay, which stay those of the protocol's."""
    kept = [cli.spelled(name) for name in ("lr", "weight_decay") if flags[name] is None]
    for name in flags["protocol"]:
        own = known[name]["optimizer"]
        if kept and flags["optimizer"] not in (None, own):
            print(
                f"validate: --optimizer {flags['optimizer']}: {name}'s are for {own}, so give {' and '.join(kept)} too"
            )


def _job(parser: cli.Parser, args: argparse.Namespace) -> Job:
    protocols = chosen_protocols(vars(args), args.dataset, args.input_size)
    sets = [images_of(path) for path in args.syn_dir]
    names = (Manifest.of(images).method or Path(path).resolve().name for images, path in zip(sets, args.syn_dir))
    methods = args.method or list(names)
    _check(parser, args, protocols)
    return cli.group(
        args,
        Job,
        sets=dict(zip(sets, map(str, methods))),
        output_dir=Path(args.output_dir),
        student_arch=tuple(args.student_arch or ()),
        protocols=protocols,
        seeds=range(args.seed, args.seed + args.seeds),
        arguments=vars(args),
    )


def _check(parser: cli.Parser, args: argparse.Namespace, protocols: dict[str, dict[str, Any]]) -> None:
    soft = [settings for settings in protocols.values() if settings["labels"] == "soft"]
    hard = [settings for settings in protocols.values() if settings["labels"] == "hard"]
    for title, settings in protocols.items():
        least, most = settings["min_scale"] or 0, settings["max_scale"]
        if least > most:
            parser.error(f"--min-scale must be at most --max-scale (here {least} and {most}, of --protocol {title})")
    for settings in hard:
        if settings["loss"] not in (None, "ce"):
            parser.error(f"--loss {settings['loss']} compares with a teacher; hard labels go with ce")
    cli.refuse_single_images(parser, args)
    if args.method and len(args.method) != len(args.syn_dir):
        parser.error(f"{len(args.syn_dir)} --syn-dir need {len(args.syn_dir)} --method names, not {len(args.method)}")
    if len({Path(images_of(path)).resolve() for path in args.syn_dir}) < len(args.syn_dir):
        parser.error("--syn-dir names a folder twice")
    if args.save_labels and args.load_labels:
        parser.error("--save-labels and --load-labels exclude each other")
    if (args.save_labels or args.load_labels) and (len(args.syn_dir) > 1 or len(protocols) > 1 or not soft):
        parser.error(
            "labels on disk are those of one --syn-dir under one --protocol with soft labels; give one of each"
        )
    if args.top_k and not args.save_labels:
        parser.error("--top-k goes with --save-labels: stored labels have the classes that they were stored with")
    if args.top_k and any(LOSSES[settings["loss"] or "kl"].target == "logits" for settings in soft):
        parser.error("--top-k keeps probabilities, and this loss compares logits; leave it out")
    if args.load_labels and (args.teacher_path or args.teacher_arch):
        parser.error("--load-labels needs no teacher; leave --teacher-path and --teacher-arch out")
    if args.classes and (args.load_labels or not (soft or args.teacher_path)):
        parser.error("--classes is the order of a teacher's classes, and there is no teacher here; leave it out")
    if not (soft or args.teacher_path or args.student_arch):
        parser.error("--student-arch is needed where there is no teacher to take it from")
    loggers.check(args.log)
