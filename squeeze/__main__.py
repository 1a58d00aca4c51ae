"""python -m squeeze: train a teacher on an ImageFolder."""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial
from pathlib import Path

from squeeze.train import Recipe, augmentation, train
from utils import checkpoints, cli, log, memory, models, ranks
from utils.datasets import known
from utils.files import LOCKS, UserError, check_output, differences, digest
from utils.images import ImageFolder
from utils.loader import Batches, TestImages
from utils.runtime import Runtime, seeded, versions
from utils.state import JointState
from utils.training import Course


def parse() -> argparse.Namespace:
    parser = cli.Parser("squeeze", "Train a teacher on the real data; write its checkpoint.")
    parser.add_argument("--train-dir", required=True, metavar="DIR", help="ImageFolder to train on")
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure top-1 on")
    parser.add_argument("--arch", default="resnet18", help="conv3 to conv6, a torchvision model, or timm/NAME")
    parser.add_argument("--output", required=True, metavar="FILE.pth", help="checkpoint to write")
    parser.add_argument("--epochs", type=cli.positive, help="the data set's, or 50, if left out")
    parser.add_argument("--lr", type=cli.amount, default=0.1)
    parser.add_argument("--lr-schedule", choices=("cosine", "onecycle"), default="onecycle")
    parser.add_argument("--momentum", type=cli.amount, default=0.9)
    parser.add_argument("--weight-decay", type=cli.amount, default=5e-4)
    parser.add_argument("--label-smoothing", type=cli.fraction, default=0.0)
    parser.add_argument("--crop-padding", type=cli.count, default=4, metavar="PIXELS", help="of the random crop of images up "
                        "to 64 pixels; larger ones get RandomResizedCrop")
    parser.add_argument("--evaluations", type=cli.positive, default=5, help="on the test set, evenly over the epochs; the "
                        "best one's network is kept beside --output, as NAME_best.pth")
    cli.add_log(parser, "the folder logs beside --output")
    cli.add_joint(parser, "the training")
    cli.add_common(parser, "images per step, of all ranks together; 128 if left out")
    args = parser.parse_args()
    cli.refuse_single_images(parser, args)
    log.check(args.log)
    return args


def main() -> None:
    args = parse()
    with ranks.joined((runtime := cli.runtime(args)).device):
        squeeze(args, runtime)


def squeeze(args: argparse.Namespace, runtime: Runtime) -> None:
    """Train the teacher, all ranks together; rank 0 writes it, and beside it the one of the best epoch that was measured."""
    facts = known(args.dataset)
    epochs = args.epochs or (facts.squeeze_epochs if facts else 50)
    check_output(args.output)
    folder = ImageFolder(args.train_dir, "--train-dir")
    test_folder = ImageFolder(args.val_dir, "--val-dir", folder.classes, "--train-dir")

    def trial(images: int) -> None:
        for images_read in (folder, test_folder):  # while there is memory; what is read stays, and is a part of what is needed
            images_read.load(args.workers)
        size, stem, _, _ = cli.geometry(args, folder)
        memory.training_step(models.build(args.arch, len(folder.classes), size, stem), images, size, runtime)

    batch_size = memory.fitting(args.batch_size, 128, 2, args.output, trial)
    recipe = Recipe(epochs, batch_size, args.lr, args.lr_schedule, args.momentum, args.weight_decay,
                    args.label_smoothing, args.crop_padding, args.evaluations, args.seed)
    settings = {**vars(recipe), "arch": args.arch, "images": digest(folder.paths), "dataset": args.dataset,
                "input_size": args.input_size, "stem": args.stem, "mean": args.mean, "std": args.std,
                "precision": runtime.precision, "compile": args.compile, **({"sync_bn": True} if args.sync_bn else {})}
    output = Path(args.output)
    best = output.with_name(f"{output.stem}_best{output.suffix}")
    if finished(args, output, settings):
        print(f"squeeze: {output} is there already (top-1 {checkpoints.read(output)['top1']:.2f} %)")
        return
    finished(args, best, settings)  # for its errors: it may be there from an epoch before a kill
    LOCKS.hold(args.output)

    size, stem, mean, std = cli.geometry(args, folder)
    folder.load(args.workers)
    test_folder.load(args.workers)
    with seeded(args.seed, "initial weights"):
        model = models.build(args.arch, len(folder.classes), size, stem)
    model = runtime.place(ranks.synchronised(model, runtime.device) if args.sync_bn else model)
    print(f"squeeze: {args.arch} ({stem} stem, {size} px) on {len(folder):,} images of {len(folder.classes)} classes, "
          f"{epochs} epochs, {runtime}")

    batches = Batches(folder, augmentation(size, args.crop_padding), args.workers)
    test = TestImages(test_folder, size, workers=args.workers)
    with closing(log.start(args.log, output.parent / "logs", f"squeeze_{output.stem}", settings)) as curves, \
            JointState(output.with_name(f".{output.name}.state"), settings, args.save_every) as state:
        def save(path: Path, course: Course) -> None:
            if ranks.rank() == 0:
                checkpoints.save(path, model, arch=args.arch, stem=stem, num_classes=len(folder.classes),
                                 classes=folder.classes, input_size=size, mean=list(mean), std=list(std),
                                 top1=round(course.top1, 2), top5=round(course.top5, 2), epochs=epochs,
                                 seconds=round(state.seconds, 1), settings=settings, versions=versions())

        with memory.guarded(batch_size, 2):
            course = train(model, batches, recipe, runtime, mean, std, test, curves, state, partial(save, best))
        save(output, course)
    print(f"squeeze: top-1 {course.top1:.2f} % (top-5 {course.top5:.2f} %) on {len(test_folder):,} test images; "
          f"{state.seconds:.0f} s, peak memory {runtime.peak_memory_mb():.0f} MB; teacher: {args.output} "
          f"(best epoch measured: {course.best_top1:.2f} %, {best})")


def finished(args: argparse.Namespace, path: Path, settings: dict) -> bool:
    """Whether `path` holds a result of this very run. Raises UserError if it is another's."""
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file, e.g. {path / 'teacher.pth'}")
    if not path.exists() or args.overwrite:
        return False
    content = checkpoints.read(path)
    found = content.get("settings")
    if found != settings:
        which = f"another run ({differences(found, settings)})" if isinstance(found, dict) else "a checkpoint of other make"
        raise UserError(f"--output {args.output}: {path} holds {which}; choose another file, or give --overwrite")
    return True


if __name__ == "__main__":
    cli.run(main)
