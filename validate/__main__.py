"""python -m validate: how well do students do that were trained on these images alone?"""

from __future__ import annotations

import argparse
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import nn

from utils import cli, log, memory, models, ranks
from utils.checkpoints import Teacher
from utils.files import LOCKS, UserError, check_output
from utils.images import ImageFolder
from utils.loader import TestImages
from utils.runtime import Runtime, seeded, versions
from utils.state import JointState
from validate import augment, labels
from validate.protocols import PROTOCOLS, Protocol, named, resolve
from validate.results import Run, file_name, summary
from validate.train import Stream, labelled, train


def parse() -> argparse.Namespace:
    parser = cli.Parser("validate", "Train students from scratch on one or several sets of images under one protocol, "
                        "with the same seeds and updates for all; report their top-1.")
    parser.add_argument("--syn-dir", required=True, nargs="+", metavar="DIR",
                        help="one or several, any ImageFolder: distilled, selected, or whole")
    parser.add_argument("--val-dir", required=True, metavar="DIR", help="ImageFolder to measure on")
    parser.add_argument("--output-dir", default="results", metavar="DIR", help="gets results.csv and results/*.json")
    parser.add_argument("--method", nargs="+", default=["delt"], metavar="NAME", help="free text for the results, e.g. delt, "
                        "random, medium; one for each --syn-dir")
    parser.add_argument("--student-arch", nargs="+", metavar="ARCH",
                        help="one or several: conv3 to conv6, torchvision's names, timm/NAME; the teacher's if left out")
    parser.add_argument("--seeds", type=cli.positive, default=3, help="how many, counted from --seed")
    parser.add_argument("--ipc", type=cli.positive, help="take the first so many images of each class; all if left out")
    parser.add_argument("--evaluations", type=cli.positive, default=3, help="on the test set, evenly over the epochs")
    cli.add_log(parser, "OUTPUT_DIR/logs")
    cli.add_joint(parser, "the student in training")
    add_protocol(parser)
    group = parser.add_argument_group("soft labels on disk")
    group.add_argument("--save-labels", metavar="DIR", help="store what the teacher says of every view, and train on that")
    group.add_argument("--load-labels", metavar="DIR", help="train on stored labels, without any teacher")
    group.add_argument("--top-k", type=cli.positive, metavar="K",
                       help="with --save-labels: keep the K largest probabilities, and spread the rest over the other classes")
    cli.add_teacher(parser)
    cli.add_common(parser, "images per step; the published one for the IPC if left out")
    args = parser.parse_args()
    # The published size of each protocol and set is where the search for one that fits begins.
    args.fit = args.batch_size == memory.AUTO
    args.batch_size = None if args.fit else args.batch_size
    check(parser, args)
    return args


def add_protocol(parser: cli.Parser) -> None:
    group = parser.add_argument_group("protocol", "a flag given beside --protocol wins, and is recorded")
    group.add_argument("--protocol", choices=tuple(PROTOCOLS), nargs="+", default=["delt"], help="one or several in turn")
    group.add_argument("--labels", choices=("soft", "hard"), help="soft: the teacher labels each batch")
    group.add_argument("--epochs", type=cli.positive)
    group.add_argument("--lr", type=cli.amount, help="of AdamW; the published one for the student if left out")
    group.add_argument("--lr-schedule", choices=("half-cosine", "cosine"), help="half-cosine ends at half the rate")
    group.add_argument("--weight-decay", type=cli.amount, help="of tensors with two dimensions or more")
    group.add_argument("--temperature", type=cli.spread, help="20, and 4 for mixup, if left out")
    group.add_argument("--mix", choices=tuple(augment.ALPHA))
    group.add_argument("--rand-augment", metavar="CONFIG", help="timm's, as rand-m6-n2-mstd1.0, or none")
    group.add_argument("--shuffle-patches", type=cli.positive, metavar="N",
                       help="shuffle N strips of columns and of rows, for collages of N x N images")
    group.add_argument("--min-scale", type=cli.share, help="smallest share of the image in a crop")
    group.add_argument("--max-scale", type=cli.share, help="largest; no crop if both are 1")
    group.add_argument("--flip", type=cli.fraction, help="probability of a horizontal flip")


def check(parser: cli.Parser, args: argparse.Namespace) -> None:
    flags = [named(name, args)[1] for name in args.protocol]
    soft = [flag for flag in flags if flag["labels"] == "soft"]
    if any((flag["min_scale"] or 0) > flag["max_scale"] for flag in flags):
        parser.error(f"--min-scale must be at most --max-scale ({args.min_scale} and {args.max_scale} were given)")
    cli.refuse_single_images(parser, args)
    if len(args.method) != len(args.syn_dir):
        parser.error(f"{len(args.syn_dir)} --syn-dir need {len(args.syn_dir)} --method names, not {len(args.method)}")
    if args.save_labels and args.load_labels:
        parser.error("--save-labels and --load-labels exclude each other")
    if (args.save_labels or args.load_labels) and (len(args.syn_dir) > 1 or len(flags) > 1 or not soft):
        parser.error("labels on disk are those of one --syn-dir under one --protocol with soft labels; give one of each")
    if args.top_k and not args.save_labels:
        parser.error("--top-k goes with --save-labels: stored labels have the classes that they were stored with")
    if args.load_labels and (args.teacher_path or args.teacher_arch):
        parser.error("--load-labels needs no teacher; leave --teacher-path and --teacher-arch out")
    if not (soft or args.teacher_path or args.student_arch):
        parser.error("--student-arch is needed where there is no teacher to take it from")
    log.check(args.log)


def main() -> None:
    args = parse()
    with ranks.joined((runtime := cli.runtime(args)).device):
        validate(args, runtime)


def validate(args: argparse.Namespace, runtime: Runtime) -> None:
    """Measure each student on each set under each protocol; all ranks together."""
    stored = [labels.Labels(args.load_labels, seed) for seed in seeds_of(args)] if args.load_labels else []
    facts = stored[0].facts(args.input_size, args.mean, args.std) if stored else teacher_or_facts(args)
    sets = [cli.folder_for(facts, path, "--syn-dir") for path in args.syn_dir]
    check_output(Path(args.output_dir) / "results.csv")
    for arch in (archs := args.student_arch or [facts.arch]):
        student_of(args, arch, facts)  # for its errors, before any student is trained
    if args.ipc:
        sets = [folder.first(args.ipc) for folder in sets]
    same_size(sets)
    test_folder = cli.folder_for(facts, args.val_dir, "--val-dir")
    for name in args.protocol:
        augmentation(protocol_of(args, name, archs[0], sets[0], facts)[1], facts)  # for its errors, too
    for folder in [*sets, test_folder]:
        folder.load(args.workers)
    test = TestImages(test_folder, facts.input_size, workers=args.workers)
    teacher = runtime.frozen(facts.model) if facts.model else None

    for name in args.protocol:
        for folder, method in zip(sets, args.method):
            for arch in archs:
                title, protocol = protocol_of(args, name, arch, folder, facts)
                if args.fit:
                    title, protocol = fitted(args, title, protocol, arch, method, facts, teacher, runtime)
                kept = stored[0].kept if stored else args.save_labels and min(args.top_k or facts.num_classes, facts.num_classes)
                run = make_run(title, protocol, arch, method, folder, test_folder, facts, runtime, args, kept)
                with memory.guarded(protocol.batch_size, 2):
                    measure(args, run, protocol, folder, test, teacher, facts, runtime)


def fitted(args: argparse.Namespace, title: str, protocol: Protocol, arch: str, method: str, facts: Teacher,
           teacher: nn.Module | None, runtime: Runtime) -> tuple[str, Protocol]:
    """The protocol with the largest batch that fits, and what to call it if that is not the published one."""
    student = student_of(args, arch, facts)

    def trial(images: int) -> None:
        if teacher:
            memory.evaluation(teacher, images, facts.input_size, runtime)
        memory.training_step(student, images, facts.input_size, runtime)

    output = Path(args.output_dir) / file_name(method, arch, title)
    size = memory.fitting(memory.AUTO, protocol.batch_size, 2, output, trial)
    return title if size == protocol.batch_size else f"{title} batch_size={size}", replace(protocol, batch_size=size)


def measure(args: argparse.Namespace, run: Run, protocol: Protocol, folder: ImageFolder, test: TestImages,
            teacher: nn.Module | None, facts: Teacher, runtime: Runtime) -> None:
    """Train and store one student for each seed that is not stored yet; print the mean."""
    arch = run.facts["student"]
    what = f"{run.facts['method']}, {arch}, {run.facts['protocol']}"
    print(f"validate: {what}: {len(folder)} images, {run.facts['ipc']} a class, {protocol.epochs} epochs of batch "
          f"{protocol.batch_size}, {runtime}")
    views = augment.Views(folder, augmentation(protocol, facts), args.workers)
    streams = [Stream(views, protocol, seed, facts.num_classes, runtime, facts.mean, facts.std) for seed in seeds_of(args)]
    for stream in streams if args.load_labels else []:
        labels.Labels(args.load_labels, stream.seed).check(stream)
    LOCKS.hold(Path(args.output_dir) / "results.csv")
    for seed, stream in zip(seeds_of(args), streams):
        if seed in run.results:
            print(f"validate: seed {seed} is there already: top-1 {run.results[seed].top1:.2f} %")
            continue
        if args.save_labels:
            labels.save(args.save_labels, stream, teacher, facts, args.top_k, args.overwrite)
        if args.save_labels or args.load_labels:
            source = partial(labels.Labels(args.save_labels or args.load_labels, seed).labelled, stream)
        else:
            source = partial(labelled, stream, teacher if protocol.labels == "soft" else None)
        with seeded(seed, "student weights"):
            student = student_of(args, arch, facts)
        name = f"{run.path.stem}_seed{seed}"
        with closing(log.start(args.log, Path(args.output_dir) / "logs", name, run.settings)) as curves, \
                JointState(run.path.with_name(f".{name}.state"), {**run.settings, "seed": seed}, args.save_every) as state:
            student = ranks.synchronised(student, runtime.device) if args.sync_bn else student
            result = train(runtime.place(student), source, stream, test, f"{arch} seed {seed}", curves, state)
            run.add(result, arguments=vars(args), versions=versions(), peak_memory_mb=runtime.peak_memory_mb())
    results = [run.results[seed] for seed in seeds_of(args)]
    found = summary(results)
    print(f"validate: {what}: top-1 {found['top1_mean']:.2f} ± {found['top1_std']:.2f} % over {len(results)} "
          f"seed{'s' * (len(results) > 1)} (best epoch {found['best_top1_mean']:.2f} %), "
          f"{sum(result.seconds for result in results):.0f} s; {run.path}")


def seeds_of(args: argparse.Namespace) -> range:
    return range(args.seed, args.seed + args.seeds)


def teacher_or_facts(args: argparse.Namespace) -> Teacher:
    """The teacher; for hard labels without a checkpoint its facts alone, from the flags and the images."""
    if args.teacher_path or any(named(name, args)[1]["labels"] == "soft" for name in args.protocol):
        return cli.teacher(args, args.syn_dir[0], "--syn-dir")
    folder = ImageFolder(args.val_dir, "--val-dir")
    size, stem, mean, std = cli.geometry(args, folder)
    return Teacher(model=None, arch="none", stem=stem, num_classes=len(folder.classes), classes=folder.classes,
                   input_size=size, mean=mean, std=std, sha256="", assumed=[])


def same_size(sets: list[ImageFolder]) -> None:
    """Raises UserError if the sets differ in size: their students would differ in updates, and prove nothing."""
    first = sets[0]
    for folder in sets[1:]:
        if len(folder) != len(first):
            raise UserError(f"--syn-dir {folder.root}: has {len(folder)} images, {first.root} has {len(first)}: sets are "
                            f"compared at the same number of images and updates; give --ipc "
                            f"{min(folder.fewest(), first.fewest())}, or measure them one by one")


def student_of(args: argparse.Namespace, arch: str, facts: Teacher) -> nn.Module:
    """A student with random weights. Its stem is by the input size, whatever the teacher's is."""
    return models.build(arch, facts.num_classes, facts.input_size, args.stem or models.default_stem(facts.input_size))


def protocol_of(args: argparse.Namespace, name: str, arch: str, folder: ImageFolder, facts: Teacher) -> tuple[str, Protocol]:
    """What to call it, and the protocol for this student on this set."""
    title, flags = named(name, args)
    return title, resolve(flags, arch, facts.num_classes, folder.fewest(), len(folder), facts.input_size, args.evaluations)


def augmentation(protocol: Protocol, facts: Teacher) -> augment.Augmentation:
    return augment.Augmentation(facts.input_size, protocol.rand_augment, protocol.shuffle_patches, protocol.min_scale,
                                protocol.max_scale, protocol.flip, facts.mean)


def make_run(title: str, protocol: Protocol, arch: str, method: str, folder: ImageFolder, test_folder: ImageFolder,
             facts: Teacher, runtime: Runtime, args: argparse.Namespace, kept: int | None) -> Run:
    """`kept` is how many classes' probabilities stored labels have, None where the labels are not stored."""
    settings = {**asdict(protocol), "method": method, "student": arch, "images": folder.fingerprint(),
                "test_images": test_folder.fingerprint(), "stem": args.stem, "teacher": facts.sha256,
                "input_size": facts.input_size, "mean": list(facts.mean), "std": list(facts.std),
                "precision": runtime.precision}
    if args.sync_bn:
        settings["sync_bn"] = True
    if kept:
        # One run, whether it stores its labels first or finds them.
        settings["stored_labels"] = kept
        title += " stored" if kept == facts.num_classes else f" stored top-{kept}"
    columns = {"dataset": args.dataset or Path(args.val_dir).resolve().parent.name, "method": method,
               "ipc": folder.fewest(), "teacher": facts.arch, "student": arch, "protocol": title,
               "epochs": protocol.epochs, "syn_dir": str(folder.root)}
    return Run(args.output_dir, settings, columns)


if __name__ == "__main__":
    cli.run(main)
