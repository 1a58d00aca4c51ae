"""python -m utils.run.cells FOLDER: run commands that build on each other, each once, by whatever process is free.

Cells come by standard input, as words with a NUL behind each: a cell's name, the file that it leaves (its name may have
a `*`), the names of those that it needs with spaces between them, how many words its command has, and these. A `?`
before a name: that one may also have failed. Any number of processes, on any machines that share the folder, can be
given the same cells, and each takes the next one that is free. A cell is done once its command has ended well. It is
done again where its file is gone, its command or one of the --inputs in it has changed, or a cell that it needs was
done again. Where one fails the others go on. Ends with exit code 0 if all are done, and 1 if some failed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from utils.data.formats import is_hidden
from utils.run import boundary, many_files
from utils.run.cpus import job_cpus
from utils.run.errors import UserError, listed
from utils.run.files import digest, make_folder, read_json, sha256, write_json
from utils.run.shared_work import SharedWork

EXPECTED = (UserError, OSError)
SILENT = 5  # seconds, after which a line says what takes so long
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # a cell's command is no rank of anything


@dataclass(frozen=True)
class Cell:
    name: str
    output: str  # the file that it leaves, or a pattern of its name
    needs: tuple[str, ...]  # names of other cells; `?` before one that may have failed
    command: tuple[str, ...]

    @property
    def has_left(self) -> bool:
        """Whether the file is there."""
        if os.path.exists(self.output):
            return True
        folder, name = os.path.split(self.output)
        return "*" in name and os.path.isdir(folder) and bool(fnmatch.filter(os.listdir(folder), name))


def read(content: str) -> list[Cell]:
    """The cells that words with a NUL behind each describe. Raises UserError where they do not."""
    words, cells, names = iter(content.split("\0")[:-1]), [], set()
    for name in words:
        try:
            output, needs, count = next(words), tuple(next(words).split()), int(next(words))
            cell = Cell(name, output, needs, tuple(next(words) for _ in range(count)))
        except (StopIteration, RuntimeError, ValueError):
            raise UserError(f"cell '{name}': is not complete") from None
        if unknown := {need.lstrip("?") for need in needs} - names:
            raise UserError(f"cell '{name}': needs {', '.join(sorted(unknown))}, which no cell before it is")
        if name in names or not count:
            raise UserError(f"cell '{name}': {'has no command' if not count else 'is there twice'}")
        names.add(name)
        cells.append(cell)
    return cells


class Cells:
    """The cells on disk: in `folder` a record of each one that is done, a note of each that failed, and its log."""

    def __init__(
        self, folder: str | Path, cells: list[Cell], workers: int = 1, pause: float = 2.0, inputs: Sequence[str] = ()
    ):
        """`workers` cells run at a time; who finds none that is free looks again after `pause` seconds.

        `inputs`: files and folders that no cell makes, as commands name them.
        """
        self.folder, self.cells, self.workers, self.pause = Path(folder), cells, workers, pause
        self.inputs = {path: content_of(path) for path in dict.fromkeys(inputs)}
        self.records: dict[str, dict[str, Any]] = {}  # of cells that are done
        self.failures: dict[str, str] = {}  # of cells that are not to be: why; empty where another one's failure is why
        self.running: dict[str, subprocess.Popen] = {}
        self.signal = 0
        self.error: BaseException | None = None  # the first that a thread met
        make_folder(self.folder)
        self.older = {cell.name: self._noted(cell) for cell in cells}  # notes of failures, which are tried again

    def run(self) -> int:
        """Until each cell is done or has failed; 0, 1, or 128 and the number of the signal that ended it.

        2 where no further one could be run, for a full disk for one, as was said then.
        """
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            threads = [threading.Thread(target=self._guarded, args=(worker,)) for worker in range(self.workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signal:
            name = signal.Signals(self.signal).name
            print(f"\nstopped by {name}; finished cells are on disk, and the same command goes on", file=sys.stderr)
            return 128 + self.signal
        if _is_told(self.error):
            return 2
        if self.error:
            raise self.error
        self._report()
        return 1 if self.failures else 0

    def _report(self) -> None:
        print(f"\ncells: {len(self.records)} of {len(self.cells)} are done")
        for cell in self.cells:
            if reason := self.failures.get(cell.name):
                left = sum(self._fails_by(other, cell.name) for other in self.cells if other.name in self.failures)
                others = f"; {left} that need it are left out" if left else ""
                print(f"cells: {cell.name} failed: {reason} ({self._log(cell)}){others}", file=sys.stderr)

    def _fails_by(self, cell: Cell, name: str) -> bool:
        """Whether `cell` is left out because the cell `name` failed."""
        by_name = {other.name: other for other in self.cells}
        failed = [need for need in cell.needs if need in self.failures]
        return name in failed or any(self._fails_by(by_name[need], name) for need in failed)

    def _stop(self, number: int, frame: object) -> None:
        """A terminal sends SIGINT to the commands as well; SIGTERM is passed on. The commands save their state."""
        self.signal = number
        for process in list(self.running.values()):
            if number == signal.SIGTERM and process.poll() is None:
                process.terminate()

    def _guarded(self, worker: int) -> None:
        try:
            self._work(worker)
        except BaseException as error:
            if not self.error and _is_told(error):
                print(f"error: {error}", file=sys.stderr, flush=True)  # now: other commands may take hours to end
            self.error = self.error or error

    def _ends(self) -> bool:
        return bool(self.signal or self.error)

    def _work(self, worker: int) -> None:
        waiting = None
        while not self._ends():
            took = False
            for cell in self.cells:
                if not self._ends() and self._is_free(cell):
                    took |= self._take(cell, worker)
            left = [cell.name for cell in self.cells if not self._is_settled(cell)]
            if not left:
                return
            if not took and waiting != left:
                if worker == 0 and not self.running:
                    print(f"cells: other processes are at work on {listed(left, 5)}")
                waiting = left
            if not took:
                time.sleep(self.pause)

    def _is_settled(self, cell: Cell) -> bool:
        return cell.name in self.records or cell.name in self.failures

    def _is_free(self, cell: Cell) -> bool:
        """Whether it may be run, as far as can be seen; notes it where it is done or failed, by whatever process."""
        if self._is_settled(cell):
            return False
        needs = [need.lstrip("?") for need in cell.needs]
        if not all(need in self.records or need in self.failures for need in needs):
            return False
        if any(need in self.failures for need in cell.needs):
            self.failures[cell.name] = ""
        else:
            self._look(cell)
        return not self._is_settled(cell)

    def _look(self, cell: Cell) -> None:
        """Note what the disk says of it."""
        record = self._shared(cell).record(0)
        if record is not None and cell.has_left:
            self.records[cell.name] = record
        elif reason := self._failure(cell):
            self.failures[cell.name] = reason

    def _failure(self, cell: Cell) -> str | None:
        """Why it failed since this process started; what failed before that is tried again."""
        try:
            if self._noted(cell) not in (None, self.older[cell.name]):
                note = read_json(self._note(cell))
                return note["reason"] if note["identity"] == self._identity(cell) else None
        except (OSError, UserError, KeyError, TypeError):
            pass
        return None

    def _identity(self, cell: Cell) -> str:
        needs = {need: digest(self.records.get(need.lstrip("?"))) for need in cell.needs}
        inputs = {word: self.inputs[word] for word in cell.command if word in self.inputs}
        return digest({"command": cell.command, "needs": needs, "inputs": inputs})

    def _shared(self, cell: Cell) -> SharedWork:
        def is_done(number: int) -> bool:
            return work.record(number) is not None and cell.has_left

        work = SharedWork(self.folder / cell.name, {"cell": self._identity(cell)}, 1, is_done)
        return work

    def _take(self, cell: Cell, worker: int) -> bool:
        """Run it unless another process does; whether it was run."""
        with contextlib.suppress(FileNotFoundError), self._shared(cell) as work:  # a folder that another one removed
            for _ in work.take():
                self._look(cell)  # another process may have done it, or failed at it, since
                if not self._is_settled(cell):
                    self._run(cell, work, worker)
                    return True
        return False

    def _run(self, cell: Cell, work: SharedWork, worker: int) -> None:
        """Run it and record how it ended; nothing if that was by the signal that ends all."""
        started = time.time()
        reason = self._execute(cell, worker)
        seconds = round(time.time() - started, 1)
        if reason is None:
            record = {"command": list(cell.command), "seconds": seconds, "ended": time.time()}
            work.save(0, record)
            self._note(cell).unlink(missing_ok=True)
            self.records[cell.name] = record
            print(f"cells: {cell.name} is done, {seconds:.0f} s ({len(self.records)} of {len(self.cells)})", flush=True)
        elif not self.signal:
            write_json(self._note(cell), {"identity": self._identity(cell), "reason": reason})
            self.failures[cell.name] = reason
            print(f"cells: {cell.name} failed after {seconds:.0f} s: {reason}", file=sys.stderr)

    def _execute(self, cell: Cell, worker: int) -> str | None:
        """Run its command; why it failed, if it did."""
        print(f"\n$ {shlex.join(cell.command)}", flush=True)
        log = self._log(cell)
        make_folder(log.parent)
        with open(log, "wb") as file:
            try:
                environment = self._environment(worker)
                process = subprocess.Popen(
                    cell.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
            except OSError as error:
                return f"{cell.command[0]}: {error.strerror}"
        self.running[cell.name] = process
        try:
            if self.signal == signal.SIGTERM:  # which came before the process was known
                process.terminate()
            code = self._follow(process, log)
        finally:
            if process.poll() is None:  # what it says cannot be shown: its cell is given back, so it must not go on
                process.terminate()
                process.wait()
            del self.running[cell.name]
        number = -code if code < 0 else code - 128
        if number > 0:
            return f"ended by {signal.Signals(number).name if number in signal.valid_signals() else f'signal {number}'}"
        if code:
            return _last_words(log) or f"exit code {code}"
        return None if cell.has_left else f"ended well, but left no {cell.output}"

    def _follow(self, process: subprocess.Popen, log: Path) -> int:
        """Until the process ends; its exit code. Show what it says, unless there are several at a time."""
        with open(log, "rb") as file:
            code = None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(0.2)
                if self.workers == 1:
                    sys.stdout.buffer.write(file.read())
                    sys.stdout.flush()
        return code

    def _environment(self, worker: int) -> dict[str, str]:
        """Of the command: a GPU of its own, where there are several, and a share of the CPUs."""
        known = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
        known["PYTHONUNBUFFERED"] = "1"
        if self.workers > 1:
            known |= {"LOCAL_RANK": str(worker), "LOCAL_WORLD_SIZE": str(self.workers)}
            known.setdefault("OMP_NUM_THREADS", str(max(1, job_cpus() // self.workers)))
        return known

    def _log(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.log"

    def _note(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.failed.json"

    def _noted(self, cell: Cell) -> tuple[int, int] | None:
        """Which note is there: another one is another file. No clock tells which came first, some are set back."""
        try:
            note = self._note(cell).stat()
        except FileNotFoundError:
            return None
        return note.st_ino, note.st_mtime_ns


def content_of(path: str) -> str | None:
    """What tells a file or a folder from another one of its name; None where there is neither.

    Of a folder the names and sizes of the files below it: to read them all would take as long as the work does, and
    copies on several machines differ in their times.
    """
    if os.path.isfile(path):
        return sha256(path)
    if not os.path.isdir(path):
        return None
    paths, seen = [], set()
    for folder, folders, files in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))
        shown = [os.path.join(folder, name) for name in folders if not is_hidden(name)]
        folders[:] = [os.path.basename(path) for path in shown if os.path.realpath(path) not in seen]  # no circles
        paths += [os.path.join(folder, name) for name in files if not is_hidden(name)]
    sizes = _sizes(path, paths)
    return digest(sorted([os.path.relpath(file, path), size] for file, size in zip(paths, sizes) if size is not None))


def _sizes(folder: str, paths: list[str]) -> list[int | None]:
    """The bytes of each file in `folder`; None of one that is not there. A line says it where this takes long."""
    started, said, found = time.monotonic(), False, []
    for sizes in many_files.asked(_size, paths):
        found += sizes
        if not said and time.monotonic() - started > SILENT:
            print(f"cells: looking for changes in {folder}, {len(found):,} of {len(paths):,} files so far", flush=True)
            said = True
    return found


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _is_told(error: BaseException | None) -> bool:
    """Whether it is said in a line; nobody would read that of a closed pipe, and a fault of ours has a traceback."""
    return isinstance(error, EXPECTED) and not isinstance(error, BrokenPipeError)


def _last_words(log: Path) -> str:
    """The last line of error in a log, or the last line."""
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def main() -> int:
    parser = boundary.Parser("utils.run.cells", __doc__.splitlines()[0])
    parser.add_argument("folder", help="gets what is known of each cell")
    parser.add_argument("--workers", type=int, default=1, help="cells that run at a time on this machine")
    parser.add_argument(
        "--inputs", nargs="*", default=[], metavar="PATH", help="what no cell makes, as commands name it"
    )
    args = parser.parse_args()
    return Cells(args.folder, read(sys.stdin.read()), max(1, args.workers), inputs=args.inputs).run()


if __name__ == "__main__":
    sys.exit(boundary.run(main))
