"""python -m recover: EarlyLate synthesis of the selected images against the frozen teacher."""

from __future__ import annotations

import argparse
import copy
import re
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Callable

import torch

from recover import schedule, sheet
from recover.engine import Recovery, Settings, make_objective
from recover.units import Store, Unit, split
from utils import cli, memory
from utils.checkpoints import Teacher
from utils.files import UserError, check_output
from utils.images import ImageFolder, progress, resize_whole, to_batch
from utils.ranks import rank_and_world
from utils.runtime import Runtime, generator, versions
from utils.state import State


def parse() -> argparse.Namespace:
    parser = cli.Parser("recover", "Optimise the selected images by EarlyLate. --round-iterations 0 --batch-by index is "
                        "CDA; --init noise --batch-by index --round-iterations 0 --milestone 0 is SRe2L's synthesis.")
    parser.add_argument("--init-dir", metavar="DIR", help="ImageFolder of the selection, file names in rank order; with "
                        "--init noise it only names the classes, and may be left out if the teacher does")
    parser.add_argument("--syn-dir", required=True, metavar="DIR", help="ImageFolder to write")
    parser.add_argument("--contact-sheet", metavar="FILE.png", help="SYN_DIR/contact_sheet.png if left out")
    parser.add_argument("--ipc", type=cli.positive, help="images per class; as many as --init-dir has if left out")
    parser.add_argument("--iterations", type=cli.positive, default=4000, help="ITR, of the images that start first")
    parser.add_argument("--round-iterations", type=cli.count, default=500, help="ROUND_ITR; 0: all start at once")
    parser.add_argument("--lr", type=cli.amount, default=0.25)
    parser.add_argument("--r-bn", type=cli.amount, default=0.01, help="weight of the BatchNorm statistics")
    parser.add_argument("--first-bn-multiplier", type=cli.amount, default=10.0, help="of the first BatchNorm's weight")
    parser.add_argument("--jitter", type=cli.count, default=0, metavar="PIXELS", help="random roll of each step's view")
    parser.add_argument("--curriculum", choices=schedule.CURRICULA, default="cosine", help="how the crop shrinks")
    parser.add_argument("--milestone", type=cli.fraction, default=1.0, help="share of ITR until the crop is smallest")
    parser.add_argument("--min-crop", type=cli.fraction, default=0.08, help="smallest share of the image in a crop")
    parser.add_argument("--init", choices=("images", "noise"), default="images")
    parser.add_argument("--batch-by", choices=("class", "index"), default="class")
    parser.add_argument("--image-format", choices=("png", "jpg"), default="png", help="png is lossless; jpg has quality 95")
    cli.add_save_every(parser, "the unit that is being optimised")
    cli.add_teacher(parser)
    cli.add_common(parser, "images optimised together; 100 if left out")
    args = parser.parse_args()
    if args.init == "images" and not args.init_dir:
        parser.error("--init-dir is needed unless --init noise is given")
    if args.contact_sheet and (not args.contact_sheet.endswith(".png") or Path(args.contact_sheet).is_dir()):
        parser.error(f"--contact-sheet {args.contact_sheet}: name a .png file")
    if args.min_crop == 0:
        parser.error("--min-crop must be above 0")
    return args


def main() -> None:
    args = parse()
    started = time.monotonic()
    rounds = schedule.count_rounds(args.iterations, args.round_iterations)
    rank, world = rank_and_world()
    runtime = cli.runtime(args)
    teacher = cli.teacher(args, args.init_dir, "--init-dir")
    classes, folder = starting_images(args, teacher)
    ipc = args.ipc or (len(folder) // len(classes) if folder else 10)
    round_of = schedule.round_of_ranks(ipc, rounds)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})
    least = ipc if args.batch_by == "class" else 1
    args.batch_size = memory.fitting(args.batch_size, max(100, least), least, args.syn_dir,
                                     partial(trial, teacher, settings, runtime))
    units = split(len(classes), ipc, args.batch_size, args.batch_by)

    members = [(label, index) for label in range(len(classes)) for index in range(ipc)]
    sources = {member: folder.root / path for member, path in zip(members, folder.paths)} if folder else {}
    sheet_path = Path(args.contact_sheet or Path(args.syn_dir) / "contact_sheet.png")
    check_output(sheet_path)
    names = {m: file_name(classes[m[0]], m[1], ipc, sources.get(m), args.image_format) for m in members}
    store = Store(args.syn_dir, identity(args, settings, teacher, ipc, folder, runtime), names,
                  {m: round_of[m[1]] for m in members}, rank, args.overwrite,
                  *([args.init_dir] if args.init_dir else []))

    todo = [unit for unit in units[rank::world] if not store.finished(unit)]
    if not todo and store.manifest.get("finished") and sheet_path.exists():
        print(f"recover: {args.syn_dir} is complete already")
        return
    if todo:
        print(f"recover: {len(classes)} classes x {ipc} images, {rounds} round{'s' * (rounds > 1)}, {args.iterations} "
              f"iterations, {len(todo)} of {len(units)} units to do, {teacher.arch} {teacher.input_size} px, {runtime}")
        # Decided by all units, not by those that are left, so that a resumed run computes the same bytes.
        objective = make_objective(teacher.model, settings, runtime, args.iterations * len(units))
        with memory.guarded(args.batch_size, least):
            synthesise(todo, store, objective, settings, folder, teacher, args.seed, runtime, args.save_every)

    seconds = round(time.monotonic() - started, 1)
    if store.complete(units, arguments=vars(args), versions=versions(), teacher_sha256=teacher.sha256,
                      rounds=rounds, seconds=seconds, peak_memory_mb=runtime.peak_memory_mb()):
        before = [[sources.get((label, index)) for index in range(ipc)] for label in range(len(classes))]
        after = [[store.folder / names[label, index] for index in range(ipc)] for label in range(len(classes))]
        sheet.draw(sheet_path, classes, before, after,
                   [args.iterations - number * args.round_iterations for number in round_of])
        print(f"recover: {len(members)} images in {args.syn_dir}; {seconds:.0f} s, peak memory "
              f"{runtime.peak_memory_mb():.0f} MB; contact sheet: {sheet_path}")
    else:
        print(f"recover: rank {rank} of {world} has done its units; the manifest follows when all ranks have")


def synthesise(todo: list[Unit], store: Store, objective: Callable, settings: Settings, folder: ImageFolder | None,
               teacher: Teacher, seed: int, runtime: Runtime, save_every: float) -> None:
    """Recover and save one unit after the other."""
    def start_of(member: tuple[int, int]) -> int:
        return store.rounds[member] * settings.round_iterations

    updates = sum(settings.iterations - start_of(member) for unit in todo for member in unit.members)
    with progress(total=updates, desc="recover", unit="img") as bar:
        for done, unit in enumerate(todo, start=1):
            def report(step_updates: int, iteration: int, loss: float) -> None:
                bar.set_postfix_str(f"unit {done}/{len(todo)}, step {iteration}, loss {loss:.3f}", refresh=False)
                bar.update(step_updates)

            recovery = Recovery(images_of(unit, folder, teacher, seed), torch.tensor([m[0] for m in unit.members]),
                                [start_of(m) for m in unit.members], settings, objective, bounds(teacher), runtime,
                                seed, "recover", unit.number)
            with State(store.state_path(unit), {**store.settings, "unit": unit.number}, save_every) as state:
                pixels = to_pixels(recovery.run(report, state), teacher)
                store.save(unit, pixels, seconds=round(state.seconds, 2))


def trial(teacher: Teacher, settings: Settings, runtime: Runtime, images: int) -> None:
    """One step of a unit of so many images, all of them active."""
    pixels = torch.zeros(images, 3, teacher.input_size, teacher.input_size)
    objective = make_objective(copy.deepcopy(teacher.model), settings, replace(runtime, compile="off"), 1)
    Recovery(pixels, torch.zeros(images, dtype=torch.long), [0] * images, replace(settings, iterations=1), objective,
             bounds(teacher), runtime, "trial").step().item()


def starting_images(args: argparse.Namespace, teacher: Teacher) -> tuple[list[str], ImageFolder | None]:
    """Class names in label order, and the first IPC images of each class (None for noise), all decoded once."""
    if args.init == "noise":
        if teacher.classes:
            return teacher.classes, None
        if not args.init_dir:
            raise UserError(f"{args.teacher_path or args.teacher_arch}: does not name its classes; give an ImageFolder "
                            "with the class folders as --init-dir")
        return cli.folder_for(teacher, args.init_dir, "--init-dir").classes, None
    folder = cli.folder_for(teacher, args.init_dir, "--init-dir")
    folder = folder.first(args.ipc or folder.fewest())
    folder.load(args.workers)
    return folder.classes, folder


def identity(args: argparse.Namespace, settings: Settings, teacher: Teacher, ipc: int, folder: ImageFolder | None,
             runtime: Runtime) -> dict:
    """Everything that decides the bytes of the result: a folder with another identity holds another run."""
    return {**asdict(settings), "ipc": ipc, "seed": args.seed, "batch_size": args.batch_size, "batch_by": args.batch_by,
            "image_format": args.image_format, "init": folder.fingerprint() if folder else "noise",
            "teacher": teacher.sha256, "arch": teacher.arch,
            "input_size": teacher.input_size, "mean": list(teacher.mean), "std": list(teacher.std),
            "device": runtime.device.type, "precision": runtime.precision, "compile": args.compile}


def file_name(name: str, index: int, ipc: int, source: Path | None, image_format: str) -> str:
    """class/RANK_stem.format: sorting by name gives the rank."""
    stem = re.sub(r"^\d{3,}_", "", source.stem) if source else "noise"
    return f"{name}/{index:0{max(3, len(str(ipc - 1)))}d}_{stem}.{image_format}"


def images_of(unit: Unit, folder: ImageFolder | None, teacher: Teacher, seed: int) -> torch.Tensor:
    """Where the unit's images start: normalised fp32 (N, 3, S, S)."""
    size = teacher.input_size
    if folder is None:
        return torch.stack([torch.randn(3, size, size, generator=generator(seed, "noise", *member))
                            for member in unit.members])
    geometry = resize_whole(size)
    ipc = len(folder) // len(folder.classes)
    batch = to_batch([geometry(folder.read(label * ipc + index)) for label, index in unit.members])
    return (batch / 255 - torch.tensor(teacher.mean).view(3, 1, 1)) / torch.tensor(teacher.std).view(3, 1, 1)


def bounds(teacher: Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """Black and white, normalised, each (3,)."""
    mean, std = torch.tensor(teacher.mean), torch.tensor(teacher.std)
    return -mean / std, (1 - mean) / std


def to_pixels(images: torch.Tensor, teacher: Teacher) -> torch.Tensor:
    """Normalised (N, 3, S, S) -> uint8."""
    pixels = images * torch.tensor(teacher.std).view(3, 1, 1) + torch.tensor(teacher.mean).view(3, 1, 1)
    return (pixels * 255).round().clamp(0, 255).byte()


if __name__ == "__main__":
    cli.run(main)
