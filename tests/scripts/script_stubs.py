"""A Python that only notes what it was asked to run, so that scripts are tested without the stages."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
REGISTRIES = (
    "validate.protocols ranking.criteria recover.methods utils.data.datasets utils.nets.models benchmarks.estimate"
)

# Ends well for -c, and for a registry unless it is asked for the word 'unknown'. A method needs what $NEEDS
# says, or the project itself, which also says what made a set, and runs the cells of a comparison. All else is noted.
PYTHON = f"""#!/bin/sh
[ "$1" = -c ] && exit 0
[ -n "$NEEDS" ] && case "$2 $3" in "recover.methods --needs") echo "$NEEDS"; exit 0;; esac
case "$2 $3" in
    "recover.methods --needs"|*" --made"|"utils.run.cells "*) cd {ROOT}; exec {sys.executable} "$@";;
esac
case " {REGISTRIES} " in *" $2 "*)
    case " $* " in *" unknown "*) echo "error: '$2' knows no 'unknown'; known: this, that" >&2; exit 2;; esac
    exit 0;;
esac
printf "%s\\t" "$@" >> "$RECORD"; echo >> "$RECORD"
case "$*" in *"-m ${{FAILING:-none}}"*) exit 7;; esac
"""


def command(path: Path, text: str) -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class Stubs:
    """Runs scripts in a folder that holds images' folders and a teacher, with the noting Python."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / "record"
        self.python = command(folder / "python", PYTHON)
        for name in "train", "val":
            (folder / name).mkdir()
        (folder / "teacher.pth").touch()

    def __call__(self, name: str, cwd: Path = ROOT, **variables: object):
        """Run scripts/NAME.sh; gives [(stage, {flag: value})] and the process. A variable that is None is not set."""
        self.record.write_text("")
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHON_BIN": self.python,
            "RECORD": self.record,
            "TRAIN_DIR": self.folder / "train",
            "VAL_DIR": self.folder / "val",
            "RUN_DIR": self.folder / "run",
            **variables,
        }
        process = subprocess.run(
            ["bash", SCRIPTS / f"{name}.sh"],
            cwd=cwd,
            text=True,
            capture_output=True,
            env={name: str(value) for name, value in environment.items() if value is not None},
        )
        return [parse(line) for line in self.record.read_text().splitlines()], process


def parse(line: str) -> tuple[str, dict]:
    """A noted command line -> the stage, and its flags with their values. `before` is what stands before the stage."""
    words = line.split("\t")[:-1]
    stage = words[len(words) - words[::-1].index("-m")] if "-m" in words else words[0]
    flags, flag = {"before": words[: words.index(stage)]}, "after"
    for word in words[words.index(stage) + 1 :]:
        if word.startswith("--"):
            flag = word[2:]
            flags[flag] = []
        else:
            flags.setdefault(flag, []).append(word)
    return stage, {name: value if name == "before" else " ".join(value) for name, value in flags.items()}
