"""python -m benchmarks.kills: a synthesis whose workers are killed ends by itself with the same bytes.

Three ranks on this machine's CPUs under torchrun's --max-restarts; nobody gives the command again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import material
from utils import cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads would add in another order


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.png"))}


def children(process: subprocess.Popen) -> list[int]:
    """The process ids of a launcher's ranks, while there are any."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=cli.positive, default=20)
    parser.add_argument("--ranks", type=cli.positive, default=3)
    parser.add_argument("--iterations", type=cli.positive, default=1200)
    parser.add_argument(
        "--pause",
        type=cli.positive_float,
        default=12,
        help="seconds between two kills at most; a start takes some of them",
    )
    parser.add_argument("--quick", action="store_true", help="two kills of a short run")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.iterations, args.pause = 2, 200, 8
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        line = [
            "recover",
            "--init-dir",
            str(material.images(root / "init", 12, 10, 32)),
            "--teacher-path",
            str(material.teacher(root / "teacher.pth", "conv3", 12, 32, "cifar")),
            "--batch-size",
            "10",
            "--iterations",
            str(args.iterations),
            "--round-iterations",
            str(args.iterations // 4),
            "--device",
            "cpu",
            "--compile",
            "off",
            "--save-every",
            "0.02",
        ]
        quiet = dict(env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", *line, "--syn-dir", str(root / "one")], check=True, **quiet)
        alone = time.monotonic() - started

        launcher = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "utils.run.launch",
                "--standalone",
                "--nproc-per-node",
                str(args.ranks),
                "--max-restarts",
                str(10 * args.kills),
                "-m",
                *line,
                "--syn-dir",
                str(root / "several"),
            ],
            **quiet,
        )
        generator, killed, started = random.Random(0), 0, time.monotonic()
        while launcher.poll() is None and killed < args.kills:
            time.sleep(generator.uniform(1, args.pause))
            if launcher.poll() is None and (found := children(launcher)):
                os.kill(generator.choice(found), signal.SIGKILL)
                killed += 1
        code, seconds = launcher.wait(), time.monotonic() - started
        one, several = files(root / "one"), files(root / "several")
        same = sum(one[name] == several.get(name) for name in one)
        print(
            f"{args.ranks} ranks, {killed} workers killed, exit code {code}: {same} of {len(one)} images have the same "
            f"bytes as those of one process; {seconds:.0f} s ({alone:.0f} s by one process that nobody killed)"
        )
        sys.exit(0 if code == 0 and same == len(one) == len(several) else 1)


if __name__ == "__main__":
    main()
