"""The command line of recover."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from recover import methods, needs, objectives
from recover.earlylate import CURRICULA, LR_SCHEDULES
from recover.engine import LEARN, OPTIMIZERS
from recover.methods import METHODS
from recover.objectives import OBJECTIVES
from recover.objectives.base import COMBINATIONS
from recover.settings import Settings
from recover.views import CROPS
from utils import cli
from utils.cli import MachineFlags, TeacherFlags
from utils.data.geometry import GeometryFlags
from utils.run import registry
from utils.run.errors import UserError

# A setting, its values with which the flags behind them do nothing, and one that would do. What an objective reads, its
# entry says.
UNREAD: tuple[tuple[str, tuple[Any, ...], str, tuple[str, ...]], ...] = (
    ("crop", ("padded", "none"), "resized", ("min_crop", "milestone", "curriculum")),
    ("min_crop", (1,), "below 1", ("milestone", "curriculum")),
    ("milestone", (0,), "above 0", ("curriculum",)),
    ("stages", (1,), "2 or more", ("blend", "stage_sizes")),
)


@dataclass(frozen=True)
class Job:
    """The command line."""

    method: str  # its name, and what was changed
    settings: Settings
    init_dir: str | None
    classes_by: str  # name or position
    syn_dir: Path
    contact_sheet: Path
    ipc: int | None
    seed: int
    image_format: str
    save_every: float  # minutes
    overwrite: bool
    teacher: TeacherFlags
    geometry: GeometryFlags
    machine: MachineFlags
    arguments: dict[str, Any]  # as they were given, for the manifest

    def of_images(self, dataset: str | None, input_size: int, teachers: int) -> Job:
        """With the method's settings for a known data set, or for images of so many pixels where nobody names one.

        `teachers` is how many there are. Raises UserError where the settings do not fit together, and for a flag or an
        option that nothing reads, unless it is shared.
        """
        given = self.arguments
        method, settings = chosen_method(given, dataset, input_size)
        if given["shared"]:
            given = without_unread(given, settings, teachers)
            method, settings = chosen_method(given, dataset, input_size)
        refuse_unread(given, settings, teachers)
        return replace(self, method=method, settings=settings, arguments=given)


def parse() -> Job:
    parser = cli.Parser("recover", "Optimise images against frozen teachers, by the recipe of --method.")
    parser.add_argument(
        "--init-dir",
        metavar="DIR",
        help="ImageFolder of the selection, file names in order; with --init noise it only names the classes, which "
        "are the teacher's, and may be left out if the teacher names them",
    )
    cli.add_classes_by(parser, "--init-dir", "the teacher")
    parser.add_argument("--syn-dir", required=True, metavar="DIR", help="ImageFolder to write")
    parser.add_argument("--contact-sheet", metavar="FILE.png", help="SYN_DIR/contact_sheet.png if left out")
    parser.add_argument(
        "--ipc", type=cli.positive, help="images per class; if left out as many as --init-dir has, 10 from noise"
    )
    parser.add_argument(
        "--image-format", choices=("png", "jpg"), default="png", help="png is lossless; jpg has quality 95"
    )
    _add_method(parser)
    _add_views(parser)
    cli.add_save_every(parser, "the unit that is being optimised")
    cli.add_teacher(parser, several="see --combine")
    cli.add_common(parser, "images optimised together; the method's number if left out")
    args = parser.parse_args()
    if args.shared:
        args.option = own_options(args.method, args.option)
    sheet = args.contact_sheet or str(Path(args.syn_dir) / "contact_sheet.png")
    if not sheet.endswith(".png") or Path(sheet).is_dir():
        parser.error(f"--contact-sheet {sheet}: name a .png file")
    for path in args.statistics or ():
        if not Path(path).is_file():
            parser.error(
                f"--statistics {path}: no such file; python -m squeeze.statistics makes one for each teacher, and "
                "squeeze.barycenters another for wmdd"
            )
    method, settings = chosen_method(vars(args), args.dataset, args.input_size)
    if settings.init == "images" and not args.init_dir:
        parser.error("--init-dir is needed unless --init noise is given")
    return cli.group(
        args,
        Job,
        method=method,
        settings=settings,
        syn_dir=Path(args.syn_dir),
        contact_sheet=Path(sheet),
        arguments=vars(args),
    )


def _add_method(parser: cli.Parser) -> None:
    group = parser.add_argument_group("method", "given flags win over the recipe, and show in the set's name")
    group.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="delt",
        help=f"the recipe, of recover/methods.py; {needs.packages_said()}",
    )
    group.add_argument(
        "--shared",
        action="store_true",
        help="the flags are given to several methods: what this one does not read is left out, and a line says so",
    )
    group.add_argument("--objective", choices=tuple(OBJECTIVES), help="what the images minimise")
    group.add_argument("--iterations", type=cli.positive, help="ITR, of the images that start first")
    group.add_argument("--round-iterations", type=cli.non_negative, help="ROUND_ITR; 0: all start at once")
    group.add_argument(
        "--iterations-share",
        type=cli.positive_fraction,
        metavar="SHARE",
        help="of the recipe's iterations, in as many rounds and stages",
    )
    group.add_argument("--optimizer", choices=tuple(OPTIMIZERS), help="of the pixels")
    group.add_argument("--lr", type=cli.non_negative_float, help="of normalised pixels")
    group.add_argument("--weight-decay", type=cli.non_negative_float, help="of what is learnt")
    group.add_argument("--lr-schedule", choices=LR_SCHEDULES, help="cosine ends at 0")
    group.add_argument("--learn", choices=LEARN, help="difference: what is added to the start, zero at first")
    group.add_argument("--clamp", choices=("on", "off"), help="to valid pixels, after each step")
    group.add_argument("--r-bn", type=cli.non_negative_float, help="weight of the BatchNorm statistics")
    group.add_argument("--first-bn-multiplier", type=cli.non_negative_float, help="of the first BatchNorm's weight")
    group.add_argument(
        "--combine",
        choices=tuple(COMBINATIONS),
        help="several teachers: the mean of their losses, or one a step in turn",
    )
    group.add_argument(
        "--statistics",
        nargs="+",
        metavar="FILE",
        help="what squeeze.statistics collected, for methods that match it: one file for each teacher, in their order; "
        "wmdd: also what squeeze.barycenters found",
    )
    group.add_argument("--stages", type=cli.positive, help="of resolutions; the optimiser begins anew in each")
    group.add_argument(
        "--stage-sizes",
        type=cli.positive_fraction,
        nargs="+",
        metavar="SHARE",
        help="of the input size, for the stages in turn; that of the last stage is 1",
    )
    group.add_argument(
        "--blend", type=cli.fraction, help="share of the starting image in what each stage but the first begins with"
    )
    group.add_argument("--init", choices=("images", "noise"), help="what is optimised")
    group.add_argument(
        "--batch-by", choices=("class", "index"), help="a batch holds whole classes, or one position of many classes"
    )
    group.add_argument(
        "--option", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the method's objective"
    )


def _add_views(parser: cli.Parser) -> None:
    group = parser.add_argument_group("views", "through which each step looks at its images; of the method, too")
    group.add_argument(
        "--crop", choices=CROPS, help="resized: RandomResizedCrop; padded: a random crop with a padding of 4 pixels"
    )
    group.add_argument("--curriculum", choices=CURRICULA, help="how resized crops shrink")
    group.add_argument("--milestone", type=cli.fraction, help="share of ITR until the crop is smallest")
    group.add_argument("--min-crop", type=cli.positive_fraction, help="smallest share of the image in a crop")
    group.add_argument("--flip", choices=("on", "off"), help="random horizontal flips")
    group.add_argument(
        "--jitter", type=cli.non_negative, metavar="PIXELS", help="random roll, by so much at most along each side"
    )
    group.add_argument(
        "--jitter-low", type=cli.whole, metavar="PIXELS", help="and at least; the recipe's if left out, 0 or -JITTER"
    )


def truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is not true or false")
    return text == "true"


# Of the options that --option can give.
OPTION_TYPES: dict[type, Callable[[str], Any]] = {bool: truth, int: cli.whole, float: cli.finite_float, str: str}


def chosen_method(flags: dict[str, Any], dataset: str | None, input_size: int | None) -> tuple[str, Settings]:
    """What to call the method, and its settings for images of the data set or of `input_size` pixels, if known.

    Raises UserError for an option that it does not have, a recipe with one that nothing reads, and for settings that do
    not fit together.
    """
    name, recipes = flags["method"], methods.recipes(dataset, input_size)
    recipe = recipes[name]
    # --batch-size is the machine's as well: a set made in other batches is not called another method.
    given = {setting: flags[setting] for setting in recipe if setting in Settings.names() - {"batch_size"}}
    for setting in ("clamp", "flip"):
        given[setting] = {"on": True, "off": False, None: None}[given[setting]]
    both_given = None not in (given["iterations"], given["round_iterations"])
    if flags["iterations_share"] and both_given and not flags["shared"]:
        raise UserError("--iterations-share does nothing beside --iterations and --round-iterations: leave it out")
    if flags["iterations_share"]:
        given |= {**share(recipe, flags["iterations_share"]), **{name: v for name, v in given.items() if v is not None}}
    given["stage_sizes"] = tuple(given["stage_sizes"]) if given["stage_sizes"] else None
    options = {setting: value for setting, value in recipe.items() if setting not in Settings.names()}
    known_to_objective = OBJECTIVES[recipe["objective"]].reads
    if strange := [option for option in options if option not in known_to_objective]:
        raise UserError(
            f"the recipe of {name} has '{strange[0]}', which is no setting and which its objective "
            f"{recipe['objective']} does not read ({', '.join(known_to_objective)}); correct it in recover/methods.py"
        )
    for text in flags["option"]:
        option, _, value = text.partition("=")
        if option not in options:
            known = ", ".join(options) or "none"
            raise UserError(f"--option {text}: {name} has no such option; its options: {known}")
        kind = type(options[option])
        if kind not in OPTION_TYPES:
            raise UserError(
                f"--option {text}: the recipe of {name} has {options[option]!r} for {option}, and an option's type is "
                "that of its value there: give the recipe a number, a text, or True or False"
            )
        try:
            given[option] = OPTION_TYPES[kind](value)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--option {text}: {error}") from None
    title, recipe = registry.with_changes(recipes, name, given)
    settings = Settings.of(recipe, tuple(flags["statistics"] or ()))
    if given["stage_sizes"] and 1 < settings.stages < len(settings.stage_sizes):
        raise UserError(
            f"--stage-sizes: {len(settings.stage_sizes)} sizes for {settings.stages} stages; leave some out"
        )
    if settings.jitter_low is not None and settings.jitter_low > settings.jitter:
        raise UserError(f"--jitter-low {settings.jitter_low} is above --jitter {settings.jitter}; give at most that")
    return title, settings


def refuse_unread(flags: dict[str, Any], settings: Settings, teachers: int) -> None:
    """Raises UserError for a flag or an option that nothing reads: it would only give the same images another name."""
    for refusal in refusals(flags, settings, teachers).values():
        raise UserError(refusal)


def refusals(flags: dict[str, Any], settings: Settings, teachers: int) -> dict[str, str]:
    """The words of each flag and option that nothing reads: why, and what would work."""
    given = {cli.spelled(flag): flag for flag, value in flags.items() if value is not None}
    given |= {f"--option {text}": text.partition("=")[0] for text in flags["option"]}
    found = {}
    for said, name in given.items():
        if reason := idle(name, settings, name in objectives.FLAGS or said.startswith("--option ")):
            setting, advice = reason
            found[said] = (
                f"{said} does nothing with {flags['method']}, as its {setting} is {getattr(settings, setting)}: leave "
                f"it out{f', or give {cli.spelled(setting)} {advice}' if advice else ''}"
            )
    if flags["combine"] is not None and teachers == 1:
        alone = f"--combine {flags['combine']} does nothing with one teacher: leave it out, or give several"
        found.setdefault("--combine", alone)
    return found


def idle(name: str, settings: Settings, is_of_objective: bool) -> tuple[str, str] | None:
    """The setting by which nothing reads the flag or option `name`, and what to give it instead, if there is any."""
    own = OBJECTIVES[settings.objective]
    if is_of_objective and name not in own.reads:
        return "objective", " or ".join(other for other, entry in OBJECTIVES.items() if name in entry.reads)
    if settings.r_bn == 0 and name in own.by_r_bn:
        return "r_bn", "above 0"
    for setting, values, advice, unread in UNREAD:
        if name in unread and getattr(settings, setting) in values:
            return setting, advice
    return None


def without_unread(flags: dict[str, Any], settings: Settings, teachers: int) -> dict[str, Any]:
    """The flags but those, and the options, that nothing reads, each of which a line names."""
    unread = refusals(flags, settings, teachers)
    for said in unread:
        print(f"recover: {flags['method']} reads no {said.partition('=')[0]}")
    options = [text for text in flags["option"] if f"--option {text}" not in unread]
    return {
        **{flag: None if cli.spelled(flag) in unread else value for flag, value in flags.items()},
        "option": options,
    }


def own_options(method: str, given: Sequence[str]) -> list[str]:
    """Of --option NAME=VALUE all but those of other methods alone, each of which a line names."""
    others = {name for recipe in METHODS.values() for name in recipe} - Settings.names() - METHODS[method].keys()
    names = [text.partition("=")[0] for text in given]
    for name in names:
        if name in others:
            print(f"recover: {method} reads no --option {name}")
    return [text for name, text in zip(names, given) if name not in others]


def share(recipe: Mapping[str, Any], part: float) -> dict[str, int]:
    """The iterations of a recipe, and of its rounds, for a `part` of the work: at least one in each round and stage."""
    iterations, round_iterations = recipe["iterations"], recipe["round_iterations"]
    pieces = iterations // round_iterations if round_iterations else recipe["stages"]
    each = max(1, round(iterations * part / pieces))
    return {"iterations": pieces * each, "round_iterations": each if round_iterations else 0}
