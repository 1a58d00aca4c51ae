"""python -m benchmarks.accuracy: what an accuracy costs, in seconds of each stage.

Each method makes its set with several shares of its iterations, and students are trained on each. For the share that
comes to --target soonest the seconds of the teacher, the start, the synthesis and of one student are added up, the
student's until the epoch in which the mean over the seeds is there for the first time. The work lies in --output-dir,
and the same command goes on with it; accuracy.csv and accuracy.png there have the accuracy over the iterations.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from recover.needs import Needs, needs
from utils import cli
from utils.data.manifest import Manifest
from utils.data.manifest import seconds as seconds_of
from utils.nets import checkpoints
from utils.run.files import digest
from validate.report import collect, figures
from validate.report.collect import Measured

SHARES = (1 / 80, 1 / 40, 1 / 20, 1 / 10, 1 / 4, 1 / 2, 1.0)  # of delt's 4000 iterations: 48 (8 rounds of 6) to 4000
STAGES = ("squeeze", "ranking", "recover", "validate")


@dataclass(frozen=True)
class Work:
    """The command line."""

    train_dir: str
    val_dir: str
    output: Path
    dataset: str | None
    arch: str
    teacher: Path
    teacher_given: bool
    methods: tuple[str, ...]
    shares: tuple[float, ...]
    ipc: int
    protocol: str | None
    seeds: int
    evaluations: int
    more: tuple[str, ...]  # further arguments of validate

    def run(self, module: str, *words: object) -> None:
        """A stage, as a user would start it."""
        known = ["--dataset", self.dataset] if self.dataset else []
        line = [sys.executable, "-m", module, *known, *map(str, words)]
        print("$", shlex.join(line), flush=True)
        if code := subprocess.run(line).returncode:
            sys.exit(code)  # the stage has said why

    def needs_of(self, method: str) -> Needs:
        return needs(method, self.dataset or self.train_dir)

    def protocol_of(self, method: str) -> str:
        return self.protocol or self.needs_of(method).protocol

    def start_of(self, method: str) -> Path:
        return self.output / f"{method}-start"

    def set_of(self, method: str, share: float) -> Path:
        return self.output / f"{method}-{share:.4g}"

    def results_of(self, method: str, share: float) -> Path:
        """A folder for each kind of students, as further arguments of validate make them."""
        kind = f"{self.protocol_of(method)}-{digest(self.more)[:8]}" if self.more else self.protocol_of(method)
        return self.output / f"{method}-{share:.4g}-students-{kind}"


def make(work: Work) -> None:
    """Everything that is measured; what is there is left as it is."""
    if work.teacher_given and not work.teacher.is_file():
        sys.stderr.write(f"error: --teacher {work.teacher}: no such file; left out, a teacher is trained\n")
        sys.exit(2)
    for method in work.methods:
        found = work.needs_of(method)
        if found.statistics or found.barycenters or not found.recovers:
            why = "reads statistics of the data set, or makes no image; scripts/compare.sh measures it"
            sys.stderr.write(f"error: --methods: {method} {why}\n")
            sys.exit(2)
    if not work.teacher.is_file():
        folders = ["--train-dir", work.train_dir, "--val-dir", work.val_dir]
        work.run("squeeze", *folders, "--arch", work.arch, "--output", work.teacher)
    teacher = ["--teacher-path", work.teacher]
    for method in work.methods:
        found = work.needs_of(method)
        start = work.start_of(method)
        if found.ranking:
            own = ["--train-dir", work.train_dir, "--output-dir", start, "--ipc", work.ipc]
            work.run("ranking", *own, *teacher, *shlex.split(found.ranking))
        for share in work.shares:
            made = work.set_of(method, share)
            line = ["--method", method, "--syn-dir", made, "--ipc", work.ipc, "--iterations-share", share]
            work.run("recover", *line, *teacher, "--init-dir", start if found.ranking else work.train_dir)
            line = ["--syn-dir", made, "--method", method, "--val-dir", work.val_dir, "--seeds", work.seeds]
            line += ["--protocol", work.protocol_of(method), "--evaluations", work.evaluations, *work.more]
            work.run("validate", *line, *teacher, "--output-dir", work.results_of(method, share))


def read(work: Work) -> pd.DataFrame:
    """One row for each method and share: iterations, seconds by stage, top-1 of each seed, and the mean by epoch."""
    squeeze = seconds_of(checkpoints.read(work.teacher))
    rows = []
    for method in work.methods:
        ranking = Manifest.of(work.start_of(method)).seconds
        for share in work.shares:
            made = Manifest.of(work.set_of(method, share))
            [found] = collect.read([work.results_of(method, share)])
            seconds = dict(zip(STAGES, (squeeze, ranking, made.seconds, found.mean("seconds"))))
            row = {"method": method, "iterations": made.settings["iterations"], "protocol": found.protocol}
            rows.append({**row, **seconds, "top1": found.top1, "curve": mean_curve(found), "epochs": found.epochs})
    return pd.DataFrame(rows)


def mean_curve(found: Measured) -> dict[float, float]:
    """Epoch -> top-1, the mean over the seeds, where it was measured."""
    points = [point for student in found.seeds.values() for point in student.curve if "top1" in point]
    return pd.DataFrame(points).groupby("epoch")["top1"].mean().to_dict()


def seconds_to(row: Any, target: float) -> dict[str, float] | None:
    """Seconds of each stage until the mean over the seeds is `target` percent; None where it never is."""
    reached = [epoch for epoch, top1 in sorted(row["curve"].items()) if top1 >= target]
    if not reached:
        return None
    found = {stage: row[stage] for stage in STAGES}
    return {**found, "validate": found["validate"] * reached[0] / row["epochs"]}


def draw(frame: pd.DataFrame, target: float | None) -> Figure:
    figure, axes = plt.subplots(figsize=(figures.WIDTH, 3.7))
    for method, found in frame.groupby("method", sort=False):
        mean = found["top1"].map(statistics.fmean)
        deviation = [statistics.stdev(values) if len(values) > 1 else 0 for values in found["top1"]]
        axes.errorbar(found["iterations"], mean, deviation, marker="o", capsize=2, label=method)
    if target is not None:
        axes.axhline(target, color="gray", linestyle="dashed", linewidth=1)
    axes.set(xscale="log", xlabel="iterations", ylabel="top-1, percent")
    axes.legend()
    return figure


def main() -> None:
    work, target = parse()
    make(work)
    frame = read(work)
    table = frame[["method", "protocol", "iterations", *STAGES]].round(1)
    table["top1"] = frame["top1"].map(statistics.fmean).round(2)
    table["std"] = [round(statistics.stdev(values), 2) if len(values) > 1 else None for values in frame["top1"]]
    table.to_csv(work.output / "accuracy.csv", index=False, lineterminator="\n")
    figures.save(work.output / "accuracy.png", lambda: draw(frame, target))
    print(table.to_string(index=False))
    if target is not None:
        for method, found in frame.groupby("method", sort=False):
            print(verdict(method, found, target))
        if not checkpoints.read(work.teacher).get("seconds"):
            print(f"{work.teacher} does not say how long its training took; that is not counted")


def verdict(method: str, rows: pd.DataFrame, target: float) -> str:
    """In one line: after how many seconds a method is at `target`, and of what."""
    costs = [(cost, row["iterations"]) for _, row in rows.iterrows() if (cost := seconds_to(row, target))]
    if not costs:
        return f"{method}: never at {target} %"
    cost, iterations = min(costs, key=lambda found: sum(found[0].values()))
    parts = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in cost.items())
    return f"{method}: {target} % after {sum(cost.values()):.0f} s ({parts}), {iterations} iterations"


def parse() -> tuple[Work, float | None]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-dir", required=True)
    parser.add_argument("--val-dir", required=True)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--dataset")
    parser.add_argument("--arch", default="conv3", help="of a teacher that is trained here")
    parser.add_argument("--teacher", help="a checkpoint; its own record says how long it took")
    parser.add_argument("--methods", nargs="+", default=["delt"])
    parser.add_argument(
        "--shares", type=cli.positive_fraction, nargs="+", default=SHARES, help="of each method's iterations"
    )
    parser.add_argument("--ipc", type=cli.positive, default=10)
    parser.add_argument("--protocol", help="each method's own if left out")
    parser.add_argument("--target", type=cli.non_negative_float, help="top-1 in percent")
    parser.add_argument("--seeds", type=cli.positive, default=3)
    parser.add_argument("--evaluations", type=cli.positive, default=30)
    parser.add_argument("--validate", default="", help="further arguments of validate, in quotes")
    args = parser.parse_args()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    work = Work(
        train_dir=args.train_dir,
        val_dir=args.val_dir,
        output=output,
        dataset=args.dataset,
        arch=args.arch,
        teacher=Path(args.teacher or output / "teacher.pth"),
        teacher_given=args.teacher is not None,
        methods=tuple(args.methods),
        shares=tuple(args.shares),
        ipc=args.ipc,
        protocol=args.protocol,
        seeds=args.seeds,
        evaluations=args.evaluations,
        more=tuple(shlex.split(args.validate)),
    )
    return work, args.target


if __name__ == "__main__":
    main()
