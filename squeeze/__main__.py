"""python -m squeeze: train a teacher on an ImageFolder."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from squeeze.augment import batches_of
from squeeze.train import LR_SCHEDULES, Recipe, train
from utils import cli
from utils.cli import MachineFlags, TrainingFlags
from utils.data.datasets import known
from utils.data.geometry import Geometry, GeometryFlags, plain
from utils.data.image_folder import ImageFolder
from utils.data.loader import EvalBatches
from utils.fit import loggers
from utils.fit.batch_size import find_batch_size, try_training_step
from utils.fit.loop import History, Training
from utils.nets import checkpoints, models
from utils.nets.teacher import geometry_of_images
from utils.run import distributed, entry
from utils.run.device import Runtime, versions
from utils.run.errors import UserError
from utils.run.files import differences
from utils.run.memory import explain_out_of_memory
from utils.run.outputs import beside, check_output, locked
from utils.run.resume import JointState
from utils.run.seeds import seeded

BATCH_SIZE = 128


@dataclass(frozen=True)
class Job:
    """The command line."""

    recipe: Recipe
    arch: str
    train_dir: str
    val_dir: str
    output: Path
    geometry: GeometryFlags
    machine: MachineFlags
    training: TrainingFlags
    keep_epochs: tuple[int, ...]  # whose networks are kept, too
    overwrite: bool

    @property
    def best(self) -> Path:
        """Where the network of the best epoch goes."""
        return self.output.with_name(f"{self.output.stem}_best{self.output.suffix}")

    def kept(self, epoch: int) -> Path:
        """Where the network of this epoch goes."""
        return self.output.with_name(f"{self.output.stem}.epoch{epoch}{self.output.suffix}")


def parse() -> Job:
    parser = cli.Parser("squeeze", "Train a teacher on the real data; write its checkpoint.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder to train on")
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure top-1 on")
    parser.add_argument("--arch", default="resnet18", help=f"{models.own()}, a torchvision model, or timm/NAME")
    parser.add_argument("--output", required=True, metavar="FILE.pth", help="checkpoint to write")
    parser.add_argument("--epochs", type=cli.positive, help="the data set's, or 50, if left out")
    parser.add_argument(
        "--lr", type=cli.non_negative_float, default=0.1, help="of SGD with Nesterov's momentum, at its height"
    )
    parser.add_argument("--lr-schedule", choices=LR_SCHEDULES, default="onecycle", help="how it rises and falls")
    parser.add_argument("--momentum", type=cli.non_negative_float, default=0.9, help="of SGD")
    parser.add_argument("--weight-decay", type=cli.non_negative_float, default=5e-4, help="of all weights")
    parser.add_argument(
        "--label-smoothing", type=cli.fraction, default=0.0, help="share of a label that goes to all classes"
    )
    parser.add_argument(
        "--crop-padding",
        type=cli.non_negative,
        default=4,
        metavar="PIXELS",
        help="of the random crop of images up to 64 pixels; larger ones get RandomResizedCrop",
    )
    parser.add_argument(
        "--evaluations",
        type=cli.positive,
        default=5,
        help="on the test set, evenly over the epochs; the network of the best one is kept as NAME_best.pth",
    )
    parser.add_argument(
        "--keep-epochs",
        type=cli.positive,
        nargs="+",
        default=[],
        metavar="EPOCH",
        help="keep the networks of these epochs too, as NAME.epoch1.pth; they may label otherwise",
    )
    cli.add_training(parser, "the training", "the folder logs beside --output")
    cli.add_common(parser, f"images per step, of all ranks together; {BATCH_SIZE} if left out")
    args = parser.parse_args()
    cli.refuse_single_images(parser, args)
    if args.output.endswith(".safetensors"):
        parser.error(f"--output {args.output}: is written by torch.save, and read by its ending; name a .pth file")
    loggers.check(args.log)
    dataset = known(args.dataset)
    epochs = args.epochs or (dataset.squeeze_epochs if dataset else 50)
    if too_late := [epoch for epoch in args.keep_epochs if epoch > epochs]:
        parser.error(f"--keep-epochs {too_late[0]}: the training has {epochs} epochs; give 1 to {epochs}")
    return cli.group(
        args,
        Job,
        recipe=replace(cli.group(args, Recipe), epochs=epochs),
        output=Path(args.output),
        keep_epochs=tuple(sorted(set(args.keep_epochs))),
    )


def main() -> None:
    job = parse()
    runtime = job.machine.runtime()
    with distributed.process_group(runtime.device, job.training.wait):
        squeeze(job, runtime)


def squeeze(job: Job, runtime: Runtime) -> None:
    """Train the teacher, all ranks together; rank 0 writes it, and beside it the best epoch's and the kept ones'."""
    check_output(job.output)
    folder = ImageFolder(job.train_dir, "--train-dir")
    folder.require_several()
    test_folder = ImageFolder(job.val_dir, "--val-dir", folder.classes, "--train-dir")
    for images in (folder, test_folder):
        images.require_same()
    with locked(job.output):
        digests = digests_of(job, folder, test_folder)
        recipe = replace(job.recipe, batch_size=batch_size(job, folder, test_folder, digests, runtime))
        settings = settings_of(job, recipe, digests, runtime)
        distributed.require_same("settings of the run", settings)
        top1 = distributed.by_main(lambda: finished_top1(job, settings))
        if top1 is not None:
            state_of(job, settings).remove()
            print(f"squeeze: {job.output} is complete (top-1 {top1:.2f} %)")
            return
        geometry = geometry_of_images(job.geometry, folder, job.machine.workers)
        for images in (folder, test_folder):
            images.load(job.machine.workers)
        distributed.barrier()
        with explain_out_of_memory(recipe.batch_size, 2):
            run(job, recipe, settings, (folder, test_folder), geometry, runtime)


def run(
    job: Job,
    recipe: Recipe,
    settings: dict,
    folders: tuple[ImageFolder, ImageFolder],
    geometry: Geometry,
    runtime: Runtime,
) -> None:
    """Train on the first of the `folders`, test on the second one, and save."""
    folder, test_folder = folders
    size = geometry.input_size
    with seeded(recipe.seed, "initial weights"):
        model = models.build(job.arch, geometry.num_classes, size, geometry.stem)
    model = runtime.place(distributed.sync_batchnorm(model, runtime.device) if job.training.sync_bn else model)
    print(
        f"squeeze: {job.arch} ({geometry.stem} stem, {size} px) on {len(folder):,} images of {len(folder.classes)} "
        f"classes, {recipe.epochs} epochs, {runtime}"
    )
    batches = batches_of(folder, size, recipe.crop_padding, runtime.device, job.machine.workers)
    test = EvalBatches(test_folder, size, workers=job.machine.workers)
    with (
        job.training.logger(job.output.parent / "logs", f"squeeze_{job.output.stem}", settings) as log,
        state_of(job, settings) as state,
    ):

        def save(path: Path, epochs: int, history: History) -> None:
            if distributed.get_rank() == 0:
                checkpoints.save(
                    path,
                    model,
                    arch=job.arch,
                    **plain(geometry),
                    top1=round(history.top1, 2),
                    top5=round(history.top5, 2),
                    epochs=epochs,
                    seconds=round(state.seconds, 1),
                    processes=history.processes,
                    settings=settings,
                    versions=versions(),
                )

        training = Training(
            "squeeze",
            batches.schedule(recipe.batch_size, recipe.epochs),
            runtime,
            geometry,
            test,
            recipe.evaluations,
            log,
            on_best=lambda epoch, history: save(job.best, epoch, history),
            kept=job.keep_epochs,
            on_kept=lambda epoch, history: save(job.kept(epoch), epoch, history),
            stream=(recipe.seed, "squeeze"),
        )
        history = train(model, batches, recipe, training, state)
        save(job.output, recipe.epochs, history)
    print(
        f"squeeze: top-1 {history.top1:.2f} % (top-5 {history.top5:.2f} %) on {len(test_folder):,} test images; "
        f"{state.seconds:.0f} s, peak memory {runtime.peak_memory_mb():.0f} MB; teacher: {job.output} "
        f"(best epoch measured: {history.best_top1:.2f} %, {job.best})"
    )
    for epoch in job.keep_epochs:
        print(f"squeeze: epoch {epoch}: top-1 {history.epochs[epoch - 1]['top1']:.2f} %, {job.kept(epoch)}")


def state_of(job: Job, settings: dict) -> JointState:
    """Where the teacher in training is saved."""
    return JointState(beside(job.output, "state"), settings, job.training.save_every)


def digests_of(job: Job, *folders: ImageFolder) -> list[str]:
    """What names the images of each folder in the settings.

    Where the run that is on disk has another digest there, as earlier versions read all bytes of whatever size, that
    of the bytes counts as well.
    """

    def recorded() -> list[str]:
        found = [state_of(job, {}).recorded]
        for path in (job.output, job.best, *map(job.kept, job.keep_epochs)):
            with contextlib.suppress(UserError, OSError):  # said where it is looked at for what it is
                found.append(checkpoints.read(path).get("settings"))
        of_runs = [settings for settings in found if isinstance(settings, dict)]
        return [settings[name] for settings in of_runs for name in ("images", "test_images") if name in settings]

    known, found = distributed.by_main(recorded), []
    for folder in folders:
        own = folder.identity()
        # All ranks read the bytes together, or none does: one that sees other files is told so by `require_same`.
        is_other = distributed.by_main(lambda: bool(known) and own not in known)
        found.append(folder.fingerprint() if is_other and folder.fingerprint() in known else own)
    return found


def batch_size(job: Job, folder: ImageFolder, test_folder: ImageFolder, digests: list[str], runtime: Runtime) -> int:
    """As asked, or the largest that fits."""

    def trial(images: int) -> None:
        # The images are read first: they stay in memory, and are a part of what is needed.
        for images_read in (folder, test_folder):
            images_read.load(job.machine.workers)
        geometry = geometry_of_images(job.geometry, folder, job.machine.workers)
        model = models.build(job.arch, geometry.num_classes, geometry.input_size, geometry.stem)
        batches = batches_of(folder, geometry.input_size, job.recipe.crop_padding, runtime.device, job.machine.workers)
        try_training_step(model, images, geometry.input_size, runtime)
        del batches  # till now: images that it holds on the device are a part of it, too

    if job.machine.finds_batch_size:
        work = {**plain(job.geometry), **runtime.kind, "arch": job.arch}
        work["images"] = digests
        return find_batch_size(BATCH_SIZE, 2, job.output, trial, **work)
    return job.machine.batch_size or BATCH_SIZE


def settings_of(job: Job, recipe: Recipe, digests: list[str], runtime: Runtime) -> dict:
    """What identifies the run: a checkpoint of other settings is another run's. `digests`: see digests_of."""
    images, test_images = digests
    settings = {
        **asdict(recipe),
        **plain(job.geometry),
        "arch": job.arch,
        "images": images,
        "test_images": test_images,
        **runtime.identity,
    }
    if job.training.sync_bn:
        settings["sync_bn"] = True
    if job.keep_epochs:
        settings["keep_epochs"] = list(job.keep_epochs)
    return settings


def finished_top1(job: Job, settings: dict) -> float | None:
    """Top-1 in percent of the result of this very run; None if it, or a kept epoch, is not there.

    Raises UserError for another's, and where another's state would be lost.
    """
    kept = [finished(job, job.kept(epoch), settings) for epoch in job.keep_epochs]
    if finished(job, job.output, settings) and all(kept):
        return float(checkpoints.read(job.output)["top1"])
    finished(job, job.best, settings)  # for its errors: it may be there from an epoch before a kill
    if not job.overwrite:
        state_of(job, settings).require_own()
    return None


def finished(job: Job, path: Path, settings: dict) -> bool:
    """Whether `path` holds a result of this very run. Raises UserError if it is another's."""
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file, e.g. {path / 'teacher.pth'}")
    if not path.exists() or job.overwrite:
        return False
    found = checkpoints.read(path).get("settings")
    if found != settings:
        which = (
            f"another run ({differences(found, settings)})"
            if isinstance(found, dict)
            else "a checkpoint that squeeze did not write"
        )
        raise UserError(f"--output {job.output}: {path} holds {which}; choose another file, or give --overwrite")
    return True


if __name__ == "__main__":
    entry.run(main)
