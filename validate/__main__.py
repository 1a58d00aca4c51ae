"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from torch import nn

from utils import cli, models
from utils.checkpoints import Teacher
from utils.files import check_output
from utils.images import ImageFolder
from utils.loader import Batches, TestImages
from utils.runtime import Runtime, seeded, versions
from validate import augment
from validate.results import Run, summary
from validate.train import Protocol, default_batch_size, default_lr, train


def parse() -> argparse.Namespace:
    parser = cli.Parser("validate", "Train students from scratch on a set of images; report their top-1.")
    parser.add_argument("--syn-dir", required=True, nargs="+", metavar="DIR",
                        help="one or several, any ImageFolder: distilled, selected, or whole")
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure on")
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets results.csv and results/*.json")
    parser.add_argument("--method", nargs="+", default=["delt"], metavar="NAME", help="free text for the results, e.g. delt, "
                        "random, medium; one for each --syn-dir")
    parser.add_argument("--student-arch", nargs="+", metavar="ARCH", help="one or several; the teacher's if left out")
    parser.add_argument("--labels", choices=("soft", "hard"), nargs="+", default=["soft"],
                        help="one or both; soft: the teacher labels each batch")
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
    parser.add_argument("--evaluations", type=cli.positive, default=3, help="on the test set, evenly over the epochs")
    cli.add_teacher(parser)
    cli.add_common(parser, "images per step; the published one for the IPC if left out")
    args = parser.parse_args()
    if args.min_scale > args.max_scale or args.min_scale == 0:
        parser.error(f"--min-scale {args.min_scale} must be above 0 and at most --max-scale {args.max_scale}")
    cli.refuse_single_images(parser, args)
    if args.temperature == 0:
        parser.error("--temperature must be above 0")
    if len(args.method) != len(args.syn_dir):
        parser.error(f"{len(args.syn_dir)} --syn-dir need {len(args.syn_dir)} --method names, not {len(args.method)}")
    if "soft" not in args.labels and not (args.teacher_path or args.student_arch):
        parser.error("--student-arch is needed where there is no teacher to take it from")
    return args


def main() -> None:
    args = parse()
    runtime = cli.runtime(args)
    facts = teacher_or_facts(args)
    sets = [cli.folder_for(facts, path, "--syn-dir") for path in args.syn_dir]
    check_output(Path(args.output_dir) / "results.csv")
    for arch in (archs := args.student_arch or [facts.arch]):
        student_of(args, arch, facts)  # for its errors, before any student is trained
    if args.ipc:
        sets = [folder.first(args.ipc) for folder in sets]
    test_folder = cli.folder_for(facts, args.val_dir, "--val-dir")
    transform = augment.augmentation(facts.input_size, args.rand_augment, args.min_scale, args.max_scale, facts.mean)
    for folder in [*sets, test_folder]:
        folder.load(args.workers)
    test = TestImages(test_folder, facts.input_size, workers=args.workers)
    teacher = runtime.frozen(facts.model) if facts.model else None

    for labels in args.labels:
        for folder, method in zip(sets, args.method):
            for arch in archs:
                protocol = make_protocol(args, arch, labels, folder)
                run = make_run(args, protocol, arch, method, folder, test_folder, facts, runtime)
                measure(args, run, protocol, Batches(folder, transform, args.workers), test,
                        teacher if labels == "soft" else None, facts, runtime)


def measure(args: argparse.Namespace, run: Run, protocol: Protocol, batches: Batches, test: TestImages,
            teacher: nn.Module | None, facts: Teacher, runtime: Runtime) -> None:
    """Train and store one student for each seed that is not stored yet; print the mean."""
    arch = run.facts["student"]
    what = f"{run.facts['method']}, {arch}, {protocol.labels} labels"
    print(f"validate: {what}: {len(batches.folder)} images, {run.facts['ipc']} a class, {protocol.epochs} epochs of batch "
          f"{protocol.batch_size}, {runtime}")
    mix = augment.mixer(protocol.mix, facts.num_classes)
    seeds = range(args.seed, args.seed + args.seeds)
    for seed in seeds:
        if seed in run.results:
            print(f"validate: seed {seed} is there already: top-1 {run.results[seed].top1:.2f} %")
            continue
        with seeded(seed, "student weights"):
            student = student_of(args, arch, facts)
        result = train(runtime.place(student), teacher, batches, test, mix, protocol, seed, runtime, facts.mean,
                       facts.std, f"{arch} seed {seed}")
        run.add(result, arguments=vars(args), versions=versions(), peak_memory_mb=runtime.peak_memory_mb())
    results = [run.results[seed] for seed in seeds]
    found = summary(results)
    print(f"validate: {what}: top-1 {found['top1_mean']:.2f} ± {found['top1_std']:.2f} % over {len(results)} "
          f"seed{'s' * (len(results) > 1)} (best epoch {found['best_top1_mean']:.2f} %), "
          f"{sum(result.seconds for result in results):.0f} s; {run.path}")


def teacher_or_facts(args: argparse.Namespace) -> Teacher:
    """The teacher; for hard labels without a checkpoint its facts alone, from the flags and the images."""
    if "soft" in args.labels or args.teacher_path:
        return cli.teacher(args, args.syn_dir[0], "--syn-dir")
    folder = ImageFolder(args.val_dir, "--val-dir")
    size, stem, mean, std = cli.geometry(args, folder)
    return Teacher(model=None, arch="none", stem=stem, num_classes=len(folder.classes), classes=folder.classes,
                   input_size=size, mean=mean, std=std, sha256="", assumed=[])


def student_of(args: argparse.Namespace, arch: str, facts: Teacher) -> nn.Module:
    """A student with random weights. Its stem is by the input size, whatever the teacher's is."""
    return models.build(arch, facts.num_classes, facts.input_size, args.stem or models.default_stem(facts.input_size))


def make_protocol(args: argparse.Namespace, arch: str, labels: str, folder: ImageFolder) -> Protocol:
    """The flags, with the published defaults for this student and this set where they were left out."""
    batch_size = args.batch_size or default_batch_size(len(folder.classes), folder.fewest(), len(folder))
    return Protocol(
        epochs=args.epochs, batch_size=batch_size, lr=default_lr(arch) if args.lr is None else args.lr,
        weight_decay=args.weight_decay, labels=labels, temperature=args.temperature or (4.0 if args.mix == "mixup" else 20.0),
        mix=args.mix, rand_augment=args.rand_augment, min_scale=args.min_scale, max_scale=args.max_scale,
        evaluations=args.evaluations)


def make_run(args: argparse.Namespace, protocol: Protocol, arch: str, method: str, folder: ImageFolder,
             test_folder: ImageFolder, facts: Teacher, runtime: Runtime) -> Run:
    settings = {**asdict(protocol), "method": method, "student": arch, "images": folder.fingerprint(),
                "test_images": test_folder.fingerprint(), "stem": args.stem, "teacher": facts.sha256,
                "input_size": facts.input_size, "mean": list(facts.mean), "std": list(facts.std),
                "precision": runtime.precision}
    columns = {"dataset": args.dataset or Path(args.val_dir).resolve().parent.name, "method": method,
               "ipc": folder.fewest(), "teacher": facts.arch, "student": arch,
               "protocol": "delt" if protocol.labels == "soft" else "hard", "epochs": protocol.epochs,
               "syn_dir": str(folder.root)}
    return Run(args.output_dir, settings, columns)


if __name__ == "__main__":
    cli.run(main)
