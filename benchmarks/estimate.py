"""python -m benchmarks.estimate: how long each stage takes, and how much memory, before it is begun.

Arithmetic alone, in a second: the work of a stage is counted from the data set, the IPC and the settings of the method
and the protocol, and divided by a rate. The rate is given (--tflops, what benchmarks.recover or check_gpu.sh measured
as the rate of matrix products), or the published one of a card (--card, else the one that nvidia-smi names), or of this
CPU's units; of it --share is reached. Reading images is not counted: a slow disk, or few CPUs beside a fast GPU, take
longer. Memory is about what a stage holds at once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks import networks
from benchmarks.networks import Cost
from ranking.criteria import CRITERIA
from ranking.flags import count_or_times, in_number
from recover import methods, needs
from recover.earlylate import EarlyLate
from recover.flags import share
from recover.settings import Settings
from utils import cli
from utils.data.datasets import DATASETS, known
from utils.data.formats import folders_in, is_image, walked
from utils.data.sizes import size_at_a_glance
from utils.run.cpus import job_cpus
from utils.run.errors import UserError
from validate import protocols
from validate.protocols import SetFacts

STAGES = ("squeeze", "ranking", "statistics", "recover", "validate")
# Published rates of dense products in 16 bits, TFLOP/s, and GiB. The first whose name is a part of the card's.
CARDS = {
    "H200": (989, 141),
    "H100": (989, 80),
    "A100": (312, 40),
    "L40S": (362, 48),
    "L40": (181, 48),
    "L4": (121, 24),
    "A10G": (70, 24),
    "A10": (125, 24),
    "A6000": (155, 48),
    "4090": (165, 24),
    "3090": (71, 24),
    "V100": (125, 16),
    "T4": (65, 16),
}
# GFLOP/s of a core by the first of these flags in /proc/cpuinfo, and bytes of a number; measured, see docs/speed.md.
CPUS = {"amx_bf16": (740, 2), "avx512_bf16": (210, 2), "avx2": (88, 4), "": (20, 4)}
GPU_SHARE, CPU_SHARE = 0.25, 0.9  # of the rate; the first is a guess
START = {True: 40.0, False: 15.0}  # seconds of a stage before its first step, on a GPU with a compilation
BASE = {True: 0.8, False: 0.5}  # GiB that a process has before it does anything
EVALUATIONS, EVALUATED = 3, 256  # of a student; images at a time
COPIES = 3  # of the activations that a step holds: of layers and of their normalisation, and gradients


@dataclass(frozen=True)
class Machine:
    """What computes."""

    name: str
    flops: float  # a second, of which `share` is reached
    share: float
    gib: float | None  # of a card
    bytes: int  # of a number
    gpu: bool


@dataclass(frozen=True)
class Images:
    """The data set."""

    classes: int
    size: int  # pixels
    train: int
    test: int


@dataclass(frozen=True)
class Stage:
    """What a stage computes, and holds."""

    name: str
    flops: float
    gib: float  # besides BASE
    of: str  # in words

    def line(self, machine: Machine, width: int = 10) -> str:
        hours = (self.flops / machine.flops / machine.share + START[machine.gpu]) / 3600
        gib = self.gib + BASE[machine.gpu]
        short = f" (the card has {machine.gib:g}: a smaller --batch-size)" if machine.gib and gib > machine.gib else ""
        long = f"{hours:.2f} h" if hours >= 1 else f"{60 * hours:.1f} min"
        return f"  {self.name:<{width}} {long:>10} {gib:>6.1f} GiB   {self.of}{short}"


def held(cost: Cost, images: int, machine: Machine, optimised: bool = False) -> float:
    """GiB of a forward and backward pass, and of weights that an optimiser moves, or of a frozen network."""
    return (images * cost.activations * COPIES * machine.bytes + cost.parameters * (16 if optimised else 4)) / 2**30


def looked_at(cost: Cost, machine: Machine) -> float:
    """GiB of a forward pass alone, which holds two layers at a time."""
    return (EVALUATED * cost.activations / 4 * machine.bytes + cost.parameters * 4) / 2**30


def squeeze(images: Images, teachers: list[Cost], epochs: int, machine: Machine) -> Stage:
    flops = sum(3 * teacher.flops for teacher in teachers) * epochs * images.train
    most = max(held(teacher, 128, machine, optimised=True) for teacher in teachers)
    return Stage("squeeze", flops, most, f"{epochs} epochs of {images.train:,} images")


def ranking(images: Images, teacher: Cost, starts: set[str], ipc: int, machine: Machine) -> Stage:
    """`starts`: the flags of each selection."""
    count = sum(scored(images, flags, ipc) for flags in starts)
    return Stage("ranking", count * teacher.flops, looked_at(teacher, machine), f"{count:,} images")


def scored(images: Images, flags: str, ipc: int) -> int:
    """How many images and crops the teacher looks at."""
    if CRITERIA[re.search(r"--criterion (\S+)", flags)[1]].needs == "nothing":
        return 0
    given = dict(re.findall(r"--(candidates|crops|tiles) (\S+)", flags))
    if "candidates" not in given:
        return images.train
    crops = int(given.get("crops", 0))
    count = in_number(count_or_times(given["candidates"]), ipc * int(given.get("tiles", 1)) ** 2, crops)
    return min(count * images.classes, images.train) * max(crops, 1)


def statistics(images: Images, passes: list[list[Cost]], machine: Machine) -> Stage:
    """`passes`: the networks of each pass over the images."""
    flops = images.train * sum(teacher.flops for teachers in passes for teacher in teachers)
    most = max(looked_at(teacher, machine) for teachers in passes for teacher in teachers)
    return Stage("statistics", flops, most, f"{images.train:,} images" + f", {len(passes)} times" * (len(passes) > 1))


def recover(name: str, images: Images, teachers: list[Cost], settings: Settings, ipc: int, machine: Machine) -> Stage:
    updates = images.classes * sum(EarlyLate(ipc, **settings.schedule).updates_of)
    batch = max(min(settings.batch_size or images.classes * ipc, images.classes * ipc), ipc)
    flops = 2 * updates * sum(teacher.flops for teacher in teachers)
    if settings.combine == "turn":
        flops /= len(teachers)
    pixels = 24 * batch * 3 * images.size**2 / 2**30  # with the optimiser's state, the view and gradients
    most = max(held(teacher, batch, machine) for teacher in teachers)
    return Stage(name, flops, most + pixels, f"{updates:,} updates of images, {batch} at a time")


@dataclass(frozen=True)
class Run:
    """The training of a student."""

    student: Cost
    epochs: int
    images: int
    batch_size: int
    soft: bool  # whether teachers label


def validate(images: Images, teachers: list[Cost], runs: list[Run], sets: int, machine: Machine) -> Stage:
    """`runs` on each of the `sets`."""
    flops, shown = 0.0, sum(run.epochs * run.images for run in runs)
    for run in runs:
        labels = sum(teacher.flops for teacher in teachers) if run.soft else 0.0
        flops += run.epochs * run.images * (3 * run.student.flops + labels)
        flops += EVALUATIONS * images.test * run.student.flops
    batch = max(run.batch_size for run in runs)
    most = max(held(run.student, batch, machine, optimised=True) for run in runs)
    most += max(looked_at(teacher, machine) for teacher in teachers)
    words = f"{sets * len(runs)} students, {sets * shown:,} images, {batch} at a time"
    return Stage("validate", sets * flops, most, words)


def runs_of(args: argparse.Namespace, images: Images) -> list[Run]:
    """A training for each protocol, seed and student."""
    facts = SetFacts(images.classes, args.ipc, images.classes * args.ipc, images.size, args.dataset)
    recipes, found = protocols.recipes(args.dataset, images.size), []
    for name in args.protocol:
        for arch in args.student:
            protocol = protocols.resolve(recipes[name], arch, facts, EVALUATIONS)
            seeds = args.seeds + len(protocol.lr_search)
            soft = protocol.labels == "soft"
            epochs = args.val_epochs or protocol.epochs
            found += [Run(_cost(arch, images.size), epochs, facts.images, protocol.batch_size, soft)] * seeds
    return found


def of_folder(train: Path, test: Path | None, size: int | None) -> Images:
    """The numbers of an ImageFolder, counted; the input size that squeeze takes for it, if none is given."""

    def images(folder: Path) -> list[int]:
        return [sum(is_image(name) for _, names in walked(path) for name in names) for path in folders_in(folder)]

    if not train.is_dir():
        raise UserError(f"--train-dir {train}: no such folder")
    size = size or size_at_a_glance(train)
    counts = images(train)
    return Images(len(counts), size, sum(counts), sum(images(test)) if test and test.is_dir() else 0)


def of_dataset(name: str, train: Path | None, test: Path | None, size: int | None) -> Images:
    """Its published numbers; where there are none, those of the folders."""
    facts = known(name)
    if facts.images:
        return Images(facts.classes, size or facts.input_size, *facts.images)
    if train is None:
        raise UserError(f"--dataset {name}: how many images it has is not known; give --train-dir as well")
    return of_folder(train, test, size or facts.input_size)


def machine_of(card: str | None, tflops: float | None, share: float | None) -> Machine:
    """Raises UserError for a card whose rate is not known, unless a rate is given."""
    name = card if card is not None else _own_card()
    if not name or name.lower() == "cpu":
        flags = _cpu_flags()
        flag = next(flag for flag in CPUS if flag in flags or not flag)
        rate, width = CPUS[flag]
        cores = job_cpus()
        rate = tflops * 1e12 if tflops else 1e9 * rate * cores
        return Machine(f"{cores} CPU cores{f' with {flag}' * bool(flag)}", rate, share or CPU_SHARE, None, width, False)
    found = next((facts for part, facts in CARDS.items() if re.search(rf"{part}(?!\d)", name)), None)
    if found is None and tflops is None:
        raise UserError(f"--card {name}: its rate is not known; give --tflops, or one of {', '.join(CARDS)}")
    rate, gib = found or (None, None)
    said = re.search(r"\b(\d+) ?GB\b", name)
    if said and gib and int(said[1]) <= 2 * gib:  # some are sold with either of two; GH200 names the CPU's
        gib = int(said[1])
    return Machine(name, (tflops or rate) * 1e12, share or GPU_SHARE, gib, 2, True)


def _own_card() -> str:
    """The name of the first GPU; empty without one."""
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, text=True, capture_output=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""


def _cpu_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    return next((line.split() for line in text.splitlines() if line.startswith("flags")), [])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=DATASETS, help="a known data set; else, and for imagenet100, --train-dir")
    parser.add_argument("--train-dir", type=Path, metavar="DIR", help="ImageFolder, whose images are counted")
    parser.add_argument("--val-dir", type=Path, metavar="DIR")
    parser.add_argument("--input-size", type=cli.positive, metavar="PIXELS")
    parser.add_argument("--ipc", type=cli.positive, default=10)
    parser.add_argument(
        "--method", nargs="+", choices=needs.names(), default=["delt"], help="what is shared counts once"
    )
    parser.add_argument("--baselines", nargs="*", choices=CRITERIA, default=[], help="real images that are selected")
    parser.add_argument("--iterations", type=cli.positive)
    parser.add_argument("--round-iterations", type=cli.non_negative)
    parser.add_argument("--iterations-share", type=cli.positive_fraction, help="of each method's iterations")
    parser.add_argument("--teacher-arch", nargs="+", default=["resnet18"], metavar="ARCH")
    parser.add_argument(
        "--labellers", type=cli.positive, help="how many of the teachers label, the first ones; all if left out"
    )
    parser.add_argument("--student", nargs="+", metavar="ARCH", help="the first teacher's if left out")
    parser.add_argument("--protocol", nargs="+", choices=protocols.PROTOCOLS, default=["delt"])
    parser.add_argument("--squeeze-epochs", type=cli.positive)
    parser.add_argument("--val-epochs", type=cli.positive)
    parser.add_argument("--seeds", type=cli.positive, default=3)
    parser.add_argument(
        "--sets", type=cli.positive, default=2, help="that students are trained on: the synthetic, and baselines"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--card", help=f"the machine's own if left out; {', '.join(CARDS)}, or cpu")
    parser.add_argument(
        "--tflops", type=cli.positive_float, help="rate of matrix products in the precision that is used, measured"
    )
    parser.add_argument(
        "--share",
        type=cli.positive_fraction,
        help=f"of it that is reached; {GPU_SHARE} of a GPU's, {CPU_SHARE} of a CPU's",
    )
    args = parser.parse_args()
    args.student = args.student or args.teacher_arch[:1]
    if not (args.dataset or args.train_dir):
        parser.error("give --dataset or --train-dir")
    return args


def stages_of(args: argparse.Namespace, images: Images, machine: Machine) -> list[Stage]:
    """Raises UserError for a network that is not known, or rounds that do not fit."""
    teachers = [_cost(arch, images.size) for arch in args.teacher_arch]
    needed = {name: needs.needs(name, args.dataset or str(images.size)) for name in args.method}
    own = {name: teachers if found.teachers == "several" else teachers[:1] for name, found in needed.items()}
    found = []
    if "squeeze" in args.stages:
        epochs = args.squeeze_epochs or (known(args.dataset).squeeze_epochs if args.dataset else 50)
        found.append(squeeze(images, teachers, epochs, machine))
    starts = {one.ranking for one in needed.values() if one.ranking}
    starts |= {f"--criterion {name}" for name in args.baselines}
    if "ranking" in args.stages and starts:
        found.append(ranking(images, teachers[0], starts, args.ipc, machine))
    kinds = {}  # what is collected -> of which networks, the most that a method asks for
    for name, one in needed.items():
        for kind in (one.statistics, "barycenters" if one.barycenters else ""):
            if kind:
                kinds[kind] = max(kinds.get(kind, []), own[name], key=len)
    if "statistics" in args.stages and kinds:
        found.append(statistics(images, list(kinds.values()), machine))
    for name in args.method:
        if "recover" in args.stages and needed[name].recovers:
            stage = f"recover {name}" if len(args.method) > 1 else "recover"
            found.append(recover(stage, images, own[name], settings_of(args, name, images), args.ipc, machine))
    if "validate" in args.stages:
        found.append(validate(images, teachers[: args.labellers], runs_of(args, images), args.sets, machine))
    return found


def settings_of(args: argparse.Namespace, method: str, images: Images) -> Settings:
    recipe = methods.recipes(args.dataset, images.size)[method]
    if args.iterations_share:
        recipe = {**recipe, **share(recipe, args.iterations_share)}
    given = {"iterations": args.iterations, "round_iterations": args.round_iterations}
    return Settings.of({**recipe, **{name: value for name, value in given.items() if value is not None}})


def _cost(arch: str, size: int) -> Cost:
    found = networks.cost(arch, size)
    if found is None:
        raise UserError(f"{arch}: what it costs is not known; known: {', '.join(networks.KNOWN)}")
    return found


def main() -> None:
    args = parse()
    try:
        folders = args.train_dir, args.val_dir, args.input_size
        images = of_dataset(args.dataset, *folders) if args.dataset else of_folder(*folders)
        machine = machine_of(args.card, args.tflops, args.share)
        stages = stages_of(args, images, machine)
    except UserError as error:
        sys.exit(f"error: {error}")
    rate = "measured" if args.tflops else "published" if machine.gpu else "by its units"
    print(
        f"estimate for {machine.name}, {machine.flops / 1e12:.3g} TFLOP/s ({rate}), of which {machine.share:.0%} "
        f"{'is reached' if args.share else 'is assumed'}, by one process; to read images is not counted:"
    )
    width = max([10, *(len(stage.name) for stage in stages)])
    for stage in stages:
        print(stage.line(machine, width))


if __name__ == "__main__":
    main()
