"""README.md and docs/: short commands are run, long ones are checked for what they name, links lead to files."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from torch.distributed.run import get_args_parser

from command_lines import called, module_of, refusal
from conftest import ROOT
from ranking.criteria import CRITERIA
from recover.methods import METHODS
from utils.data.datasets import DATASETS
from validate.protocols import PROTOCOLS

README = "README.md"
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
KEPT = {"train": 30, "val": 10}  # images of a class; the commands are the same for all of them


# --- what the pages hold ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of its first command
    kind: str  # what stands behind the fence
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *kinds: str) -> list[Block]:
    """The page's blocks of these kinds, in order; of all kinds if none is given."""
    text = read(page)
    found = [Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in FENCE.finditer(text)]
    return [block for block in found if not kinds or block.kind in kinds]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def prose(page: str) -> str:
    return FENCE.sub("", read(page))


# --- short commands are run -------------------------------------------------------------------------------------


def run_page(page: str, place: Path, *kinds: str) -> None:
    """Run the page's short commands in `place`, a copy of the repository, and apply its diffs, or one of these."""
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": search, "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    environment["GIT_CEILING_DIRECTORIES"] = str(place.parent)  # the copy is no part of any git repository
    for block in blocks(page, *(kinds or ("bash", "diff"))):
        command = ["git", "apply", "-"] if block.kind == "diff" else ["bash", "-euo", "pipefail", "-s"]
        done = subprocess.run(command, input=block.text, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.place}:\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """A copy of the repository with the quickstart's data, cut, after README's commands; made by one worker for all."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "documented"
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            making = place.with_name("documented.partial")
            shutil.rmtree(making, ignore_errors=True)
            copy_repository(making)
            line = [sys.executable, "-m", "utils.data.prepare", "fashion_mnist_cut", "--output", "runs/quickstart/data"]
            subprocess.run(line, cwd=making, check=True, capture_output=True)
            for split, kept in KEPT.items():
                for folder in (making / "runs" / "quickstart" / "data" / split).iterdir():
                    for image in sorted(folder.iterdir())[kept:]:
                        image.unlink()
            run_page(README, making)
            making.rename(place)
    return place


def copy_repository(folder: Path) -> None:
    """Everything but what scripts make: nothing may be written into the repository."""
    folder.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name[0] == "." or path.name in ("runs", "data"):
            continue
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "diff")])
def test_diffs_apply(page, tmp_path):
    """What the slow tests run as well; so a change beside a diff is noticed at once."""
    copy_repository(tmp_path / "copy")
    run_page(page, tmp_path / "copy", "diff")


@pytest.mark.slow
def test_readme_commands_make_a_distilled_set_and_its_report(example):
    run = example / "runs" / "example"
    assert len(list(run.glob("syn/*/*.png"))) == len(list(run.glob("init/*/*.png"))) > 0
    assert (run / "report" / "report.html").is_file() and (run / "results.csv").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "bash")])
def test_commands_run(page, example, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(example, place)
    run_page(page, place)


# --- long commands are checked ----------------------------------------------------------------------------------


@functools.cache
def known_flags(name: str) -> set[str]:
    text = (
        get_args_parser().format_help()
        if name == "utils.run.launch"
        else called(module_of(name).main, name, ["--help"])
    )
    return set(re.findall(r"--[\w-]+", text))


def unknown_flags(name: str, words: list[str]) -> list[str]:
    flags = [word.split("=")[0] for word in words if re.match(r"--\w", word)]
    return [f"python -m {name} knows no {flag}" for flag in flags if flag not in known_flags(name)]


def check_module(words: list[str], whole: bool) -> list[str]:
    """What is wrong with MODULE ARGUMENTS; `whole`: they are a command, not a part of one or a pattern."""
    name, *rest = words
    if module_of(name) is None:
        return [f"no module {name}"]
    if name == "utils.run.launch":
        end = rest.index("-m") if "-m" in rest else len(rest)
        return unknown_flags(name, rest[:end]) + (check_module(rest[end + 1 :], whole) if end < len(rest) else [])
    if whole and hasattr(module_of(name), "parse"):
        error = refusal(words)
        return [f"python -m {name}: {error}"] if error else []
    return unknown_flags(name, rest)


def text_of(script: Path) -> str:
    """A script with all that it sources."""
    text = script.read_text()
    for name in re.findall(r"^source .*?([\w/]+\.sh)", text, re.MULTILINE):
        sourced = script.parent / Path(name).name
        text += text_of(sourced) if sourced != script else ""
    return text


def check_script(path: str, words: list[str], variables: dict[str, str], whole: bool) -> list[str]:
    """What is wrong with `VARIABLES bash PATH WORDS`."""
    script = ROOT / path
    if not script.is_file():
        return [f"no script {path}"]
    text = text_of(script)
    reserved = re.search(r"^RESERVED=\((.*)\)", text, re.MULTILINE)[1].split()
    wrong = []
    for name, value in variables.items():
        own = name.removeprefix("DELT_")
        if (own in reserved) != name.startswith("DELT_") or f"${{{own}" not in text:
            wrong.append(f"{path} does not read {name}")
        if own.endswith("_ARGS"):
            stage = own.removesuffix("_ARGS").lower()
            wrong += unknown_flags(stage if module_of(stage) else f"squeeze.{stage}", shlex.split(value))
        registry = {"METHOD": METHODS, "PROTOCOL": PROTOCOLS, "CRITERION": CRITERIA, "DATASET": DATASETS}.get(own)
        registry = [*CRITERIA, "selection"] if own == "BASELINES" else registry
        wrong += [f"{name}: no {word}" for word in value.split() if registry and word not in registry]
    if module := re.search(r'-m ([\w.]+) "\$@"', text):
        return wrong + check_module([module[1], *words], whole)
    return wrong + [f"{path} knows no {word}" for word in words if word.startswith("--") and word not in text]


def check(words: list[str], whole: bool = True) -> list[str]:
    """What is wrong with a command, without running it."""
    variables = {}
    while match := ASSIGNMENT.fullmatch(words[0]):
        variables[match[1]] = match[2]
        words = words[1:]
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        return check_module(rest[1:], whole)
    if program == "bash":
        return check_script(rest[0], rest[1:], variables, whole)
    if program == "sbatch":
        scripts = [word for word in rest if not word.startswith("--")]
        return [f"no script {path}" for path in scripts if not (ROOT / path).is_file()]
    return [f"nothing is known of {program}"]


@pytest.mark.parametrize("page", PAGES)
def test_long_commands_name_what_exists(page):
    wrong = [
        f"{block.place}: {problem}"
        for block in blocks(page, "bash long")
        for words in commands(block.text)
        for problem in check(words)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_prose_name_what_exists(page):
    spans = re.findall(r"`((?:python -m|bash scripts/)[^`]+)`", prose(page))
    wrong = [problem for span in spans for problem in check(shlex.split(span), whole=False)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "python -m recover --syn-dir x --initdir y",
        "python -m recover --syn-dir x --init-dir y --method none",
        "python -m recovery --syn-dir x",
        "python -m benchmarks.memory --fast",
        "python -m utils.run.launch --standalon -m recover --init-dir x --syn-dir y",
        "python -m utils.run.launch --standalone -m recover --init-dir x --sin-dir y",
        "bash scripts/cifar10_resnet18_ipc11.sh",
        "METHOD=cda bash scripts/distill.sh",
        "DELT_IPC=1 bash scripts/distill.sh",
        "DELT_METHOD=none bash scripts/distill.sh",
        "VALIDATE_ARGS='--epoch 3' bash scripts/distill.sh",
        "BARYCENTERS_ARGS='--learn-weight' bash scripts/distill.sh",
        "bash scripts/test.sh --faster",
        "bash scripts/prepare_data.sh cifar11",
        "sbatch --nodes=2 scripts/slurm/no_nodes.sh scripts/distill.sh",
    ],
)
def test_the_check_finds_what_does_not_exist(line):
    assert check(shlex.split(line))


# --- the pages themselves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_in_a_marked_block(page):
    for block in blocks(page):
        assert block.kind in ("", "bash", "bash long", "diff", "bibtex"), block.place
        if block.kind == "":
            assert not re.search(r"^(python|bash|sbatch) ", block.text, re.MULTILINE), block.place


def test_readme_is_short():
    lines = read(README).splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_diffs_are_short():
    found = [block for page in PAGES for block in blocks(page, "diff")]
    assert found and [block.place for block in found if block.text.count("\n") > 40] == []


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", prose(page)):
        assert f"def {name}(" in sources, f"{page}: {name}"


def headings(path: Path) -> set[str]:
    """What links to the headings of a page end with, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = ROOT / page if not name else (ROOT / page).parent / name
        assert target.exists(), f"{page}: {link}"
        assert not heading or heading in headings(target), f"{page}: {link}"
