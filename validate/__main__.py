"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

import argparse
import copy
from dataclasses import asdict
from pathlib import Path

import numpy as np

from utils import cli, models
from utils.checkpoints import Teacher
from utils.datasets import IMAGENET_MEAN, IMAGENET_STD, known
from utils.files import digest
from utils.images import ImageFolder, common_size
from utils.loader import Batches, TestImages
from utils.runtime import Runtime, seeded, versions
from validate import augment
from validate.results import Run, summary
from validate.train import Protocol, default_batch_size, default_lr, train


def parse() -> argparse.Namespace:
    parser = cli.Parser("validate", "Train students from scratch on a set of images; report their top-1.")
    parser.add_argument("--syn-dir", required=True, metavar="DIR", help="any ImageFolder: distilled, selected, or whole")
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure on")
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets results.csv and results/*.json")
    parser.add_argument("--method", default="delt", help="free text for the results, e.g. delt, random, medium")
    parser.add_argument("--student-arch", nargs="+", metavar="ARCH", help="one or several; the teacher's if left out")
    parser.add_argument("--labels", choices=("soft", "hard"), default="soft", help="soft: the teacher labels each batch")
    parser.add_argument("--seeds", type=cli.positive, default=3, help="how many, counted from --seed")
    parser.add_argument("--ipc", type=cli.positive, help="take the first so many images of each class; all if left out")
    parser.add_argument("--epochs", type=cli.positive, default=300)
    parser.add_argument("--lr", type=cli.amount, help="of AdamW; the published one for the student if left out")
    parser.add_argument("--weight-decay", type=cli.amount, default=0.01, help="of tensors with two dimensions or more")
    parser.add_argument("--temperature", type=cli.amount, help="20 for cutmix and none, 4 for mixup, if left out")
    parser.add_argument("--mix", choices=tuple(augment.MIXES), default="cutmix")
    parser.add_argument("--rand-augment", default="rand-m6-n2-mstd1.0", metavar="CONFIG", help="timm's, or none")
    parser.add_argument("--min-scale", type=cli.fraction, default=0.25, help="smallest share of the image in a crop")
    parser.add_argument("--max-scale", type=cli.fraction, default=1.0)
    parser.add_argument("--evaluations", type=cli.positive, default=5, help="on the test set, evenly over the epochs")
    cli.add_teacher(parser)
    cli.add_common(parser, "images per step; the published one for the IPC if left out")
    args = parser.parse_args()
    if args.min_scale > args.max_scale or args.min_scale == 0:
        parser.error(f"--min-scale {args.min_scale} must be above 0 and at most --max-scale {args.max_scale}")
    if args.temperature == 0:
        parser.error("--temperature must be above 0")
    if args.labels == "hard" and not (args.teacher_path or args.student_arch):
        parser.error("--student-arch is needed where there is no teacher to take it from")
    return args


def main() -> None:
    args = parse()
    runtime = cli.runtime(args)
    facts = teacher_or_facts(args)
    folder = cli.folder_for(facts, args.syn_dir, "--syn-dir")
    counts = np.bincount(folder.labels)
    if args.ipc:
        folder = folder.first(args.ipc)
    test_folder = cli.folder_for(facts, args.val_dir, "--val-dir")
    ipc = args.ipc or int(counts.min())
    mix = augment.mixer(args.mix, len(folder.classes))
    transform = augment.augmentation(facts.input_size, args.rand_augment, args.min_scale, args.max_scale, facts.mean)

    folder.load(args.workers)
    images = digest([[path, label] for path, label in zip(folder.paths, folder.labels)])
    runs = [make_run(args, arch, folder, ipc, facts, runtime, images) for arch in args.student_arch or [facts.arch]]
    if any(seed not in run.results for run, _ in runs for seed in seeds(args)):
        test_folder.load(args.workers)
    batches = Batches(folder, transform, args.workers)
    test = TestImages(test_folder, facts.input_size, workers=args.workers)
    teacher = runtime.place(facts.model) if args.labels == "soft" else None

    for run, protocol in runs:
        arch = run.facts["student"]
        print(f"validate: {arch} on {len(folder)} images ({args.method}, {ipc} a class), {args.labels} labels, "
              f"{protocol.epochs} epochs of batch {protocol.batch_size}, {runtime}")
        for seed in seeds(args):
            if seed in run.results:
                print(f"validate: seed {seed} is there already: top-1 {run.results[seed].top1:.2f} %")
                continue
            with seeded(seed, "student weights"):
                student = models.build(arch, len(folder.classes), facts.input_size,
                                       args.stem or models.default_stem(facts.input_size))
            run.add(train(runtime.place(student), teacher, batches, test, mix, protocol, seed, runtime, facts.mean,
                          facts.std, f"{arch} seed {seed}"),
                    arguments=vars(args), versions=versions(), peak_memory_mb=runtime.peak_memory_mb())
        results = [run.results[seed] for seed in seeds(args)]
        found = summary(results)
        print(f"validate: {args.method}, {arch}, {args.labels} labels: top-1 {found['top1_mean']:.2f} ± "
              f"{found['top1_std']:.2f} % over {len(results)} seed{'s' * (len(results) > 1)} (best epoch "
              f"{found['best_top1_mean']:.2f} %), {sum(r.seconds for r in results):.0f} s; {run.path}")


def seeds(args: argparse.Namespace) -> range:
    return range(args.seed, args.seed + args.seeds)


def teacher_or_facts(args: argparse.Namespace) -> Teacher:
    """The teacher; with hard labels and no checkpoint, its facts alone (no network), from the flags and the images."""
    if args.labels == "soft" or args.teacher_path:
        return cli.teacher(args, args.syn_dir, "--syn-dir")
    data = known(args.dataset)
    folder = ImageFolder(args.val_dir, "--val-dir")
    size = args.input_size or (data.input_size if data else common_size(folder.load(args.workers)))
    mean, std = args.mean or (data.mean if data else IMAGENET_MEAN), args.std or (data.std if data else IMAGENET_STD)
    return Teacher(model=None, arch="none", stem=args.stem or models.default_stem(size), num_classes=len(folder.classes),
                   classes=folder.classes, input_size=size, mean=tuple(mean), std=tuple(std), sha256="", assumed=[])


def make_run(args: argparse.Namespace, arch: str, folder: ImageFolder, ipc: int, facts: Teacher, runtime: Runtime,
             images: str) -> tuple[Run, Protocol]:
    protocol = Protocol(
        epochs=args.epochs, batch_size=args.batch_size or default_batch_size(len(folder.classes), ipc, len(folder)),
        lr=args.lr if args.lr is not None else default_lr(arch), weight_decay=args.weight_decay, labels=args.labels,
        temperature=args.temperature or (4.0 if args.mix == "mixup" else 20.0), mix=args.mix,
        rand_augment=args.rand_augment, min_scale=args.min_scale, max_scale=args.max_scale, evaluations=args.evaluations)
    settings = {**asdict(protocol), "method": args.method, "student": arch, "images": images, "syn_dir": args.syn_dir,
                "teacher": facts.sha256, "input_size": facts.input_size, "precision": runtime.precision}
    columns = {"dataset": args.dataset or Path(args.val_dir).resolve().parent.name, "method": args.method, "ipc": ipc,
               "teacher": facts.arch, "student": arch, "protocol": "delt" if args.labels == "soft" else "hard",
               "epochs": args.epochs, "syn_dir": args.syn_dir}
    return Run(args.output_dir, settings, columns), protocol


if __name__ == "__main__":
    cli.run(main)
