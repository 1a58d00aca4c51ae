"""What the end-to-end tests share: a tiny data set, and the command line of each stage on it, run in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CLASSES = ("ant", "moth", "zebra")
COLOURS = {"ant": (200, 60, 60), "moth": (60, 200, 60), "zebra": (60, 60, 200)}
PIXELS, INPUT = 16, 14  # of the files and of the teacher: 14 // 7 * 8 = 16, so its test geometry is a crop alone
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)  # nobody's default

# Sums are taken in another order by another number of threads; and for images this small one is the fastest.
torch.set_num_threads(1)


def draw(folder: Path, colour: tuple, count: int, stream: object, size: int = PIXELS) -> None:
    """`count` noisy PNGs of one colour, of differing strength."""
    random = np.random.default_rng(list(str(stream).encode()))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        strength = random.uniform(0.2, 1)
        image = random.normal(128, 50, (size, size, 3)) + strength * (np.array(colour) - 128)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{folder.name}{number}.png")


def snapshot(folder: Path) -> dict[str, tuple]:
    """Every path below `folder` with its bytes and its time of writing."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else ("folder",)
        for path in sorted(folder.rglob("*"))
    }


def images(folder: Path) -> dict[str, bytes]:
    """The images below the class folders of `folder`, by relative path, in sorted order."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.glob("*/*"))
        if path.suffix in (".png", ".jpg")
    }


@dataclass
class Outcome:
    code: int
    out: str
    err: str


class Place:
    """A folder with `train`, `val` and `init`, a teacher if one was put there, and the stages' command lines.

    The lines are dictionaries: `epochs=2` stands for `--epochs 2`, True for a bare flag, None for leaving it out.
    """

    def __init__(self, root: Path):
        self.root = root
        self.train, self.val, self.init, self.syn = (root / name for name in ("train", "val", "init", "syn"))
        self.teacher = root / "teacher.pth"
        self.lines = {
            "squeeze": dict(
                train_dir=self.train,
                val_dir=self.val,
                arch="conv3",
                output=root / "squeezed.pth",
                epochs=4,
                batch_size=8,
                lr=0.02,
                input_size=INPUT,
                mean=MEAN,
                std=STD,
            ),
            "ranking": dict(
                train_dir=self.train,
                teacher_path=self.teacher,
                ranking_file=root / "ranking.csv",
                output_dir=root / "selected",
                ipc=4,
                workers=0,
            ),
            "recover": dict(
                init_dir=self.init,
                teacher_path=self.teacher,
                syn_dir=self.syn,
                iterations=8,
                round_iterations=2,
                batch_size=8,
            ),
            "validate": dict(
                syn_dir=self.init,
                val_dir=self.val,
                teacher_path=self.teacher,
                output_dir=root / "measured",
                epochs=2,
                seeds=1,
            ),
        }

    def copied(self, root: Path) -> Place:
        """The same files elsewhere."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Place(root)

    def reorder_teacher(self) -> list[str]:
        """The teacher as if trained on the classes in another order, none in its alphabetical place; that order."""
        content, order = torch.load(self.teacher, weights_only=True), [2, 0, 1]
        for name in ("classifier.weight", "classifier.bias"):
            content["model"][name] = content["model"][name][order]
        content["classes"] = [CLASSES[k] for k in order]
        torch.save(content, self.teacher)
        return content["classes"]

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def command(self, stage: str, **changes) -> list[str]:
        line = {**self.lines[stage], "device": "cpu", "precision": "fp32", "compile": "off", **changes}
        words = []
        for name, value in line.items():
            values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
            words += ["--" + name.replace("_", "-"), *map(str, values)] if value is not None else []
        return words

    def run(self, stage: str, env: dict | None = None, **changes) -> Outcome:
        """The stage, in this process."""
        return self.start(f"{stage}.__main__", *self.command(stage, **changes), env=env)

    def start(self, module: str, *words: object, env: dict | None = None) -> Outcome:
        """Any module with these words, in this process."""
        from utils.run import entry

        main = importlib.import_module(module).main
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.dict(os.environ, env or {}),
            mock.patch.object(sys, "argv", [module, *map(str, words)]),
        ):
            try:
                entry.run(main)
            except SystemExit as end:
                code = end.code or 0
        return Outcome(code, out.getvalue(), err.getvalue())

    def works(self, stage: str, env: dict | None = None, **changes) -> str:
        """Run a stage that has to succeed; what it printed."""
        outcome = self.run(stage, env, **changes)
        assert outcome.code == 0, outcome.err
        return outcome.out

    def spawn(self, stage: str, **changes) -> Outcome:
        """The stage as a user starts it: a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", stage, *self.command(stage, **changes)],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fork(self, stage: str, **changes) -> int:
        """The stage in a process that has nothing to import any more; its id. What it says goes to the file `told`."""
        child = os.fork()
        if child == 0:
            code = 70
            try:
                outcome = self.run(stage, **changes)
                (self.root / "told").write_text(outcome.err)
                code = outcome.code
            finally:
                os._exit(code)
        return child


@pytest.fixture(scope="session")
def stock(tmp_path_factory) -> Place:
    """The data set and its teacher, made once. Tests work on copies."""
    place = Place(tmp_path_factory.mktemp("stock"))
    for name, colour in COLOURS.items():
        draw(place.train / name, colour, 7, f"train {name}")
        draw(place.val / name, colour, 6, f"val {name}")
        draw(place.init / name, colour, 4, f"init {name}")
    # Some test images look like another class, so that no network is right or wrong about all of them.
    draw(place.val / "ant", COLOURS["moth"], 2, "misleading")
    place.works("squeeze", output=place.teacher)
    return place


@pytest.fixture
def place(stock, tmp_path) -> Place:
    """A copy of the data set and its teacher to spoil."""
    return stock.copied(tmp_path)
