"""The way into a stage: the boundary where errors become one line, with signals and ranks."""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import multiprocessing
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Callable

from torch.distributed.elastic.multiprocessing.errors import record

from utils.run import boundary, distributed, threads, waiting
from utils.run.errors import UserError, first_line
from utils.run.signals import SIGNALS, Stopped

# What a disk does to a correct program, whatever it was writing; and a limit on open files or their size.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EFBIG, errno.EMFILE, errno.ENFILE),
)
# What is wrong with a path: the user's fault only where it is the user's path.
PATH_ERRORS = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV, errno.ETXTBSY, errno.ENOTSUP),
)
FOLDER_VARIABLES = ("TMPDIR", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME")
OTHER_FOLDERS = ("results", os.path.expanduser("~/.cache"))  # that stand for a flag or variable that is left out


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; show a UserError as one line and end with exit code 2. DELT_DEBUG=1 adds its traceback.

    Under torchrun the error goes into torchrun's error file, and utils.run.launch shows that of the first rank to fail.
    """
    if main.__module__ == "__main__":  # a process for this stage alone
        hide_gpus(sys.argv)
    # The modules live as long as the process: looking through them for garbage would take a second of its end.
    atexit.register(gc.freeze)
    guarded = _as_user_errors(main)
    try:
        (record(guarded) if distributed.launched() else guarded)()
    except BrokenPipeError:
        sys.exit(boundary.unread())
    except UserError as error:
        boundary.show(error, line=not distributed.launched())
        _end(2)
    except distributed.ConnectionLost:
        _end(1)
    except SystemExit as end:
        _end(end.code or 0)
    except Exception:
        if distributed.get_world_size() == 1:
            raise
        traceback.print_exc()
        _end(1)
    except (Stopped, KeyboardInterrupt) as stopped:
        if distributed.is_main_process() and distributed.LAUNCHER not in os.environ:
            name = str(stopped) or "SIGINT"
            print(
                f"stopped by {name}; all progress is saved, and the same command resumes: {_command()}", file=sys.stderr
            )
        _end(128 + getattr(stopped, "number", signal.SIGINT))


def _end(code: int) -> None:
    """End the process.

    With other ranks at once: the threads of connections that an error left open would abort the interpreter's own end.
    """
    if distributed.get_world_size() == 1:
        sys.exit(code)
    for worker in multiprocessing.active_children():
        worker.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def hide_gpus(words: list[str]) -> None:
    """Let no library find a GPU if --device cpu is given: optimisers and compilers ask for one, and that starts it."""
    devices = [after for word, after in zip(words, [*words[1:], ""]) if word == "--device"]
    devices += [word.partition("=")[2] for word in words if word.startswith("--device=")]
    if devices and devices[-1] == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")


def _as_user_errors(main: Callable[[], None]) -> Callable[[], None]:
    """`main` with signals handled, silent unless it is the main process, and with a machine's faults as UserErrors."""

    def guarded() -> None:
        try:
            with SIGNALS.handled(), contextlib.ExitStack() as silence:
                if not distributed.is_main_process():
                    silence.enter_context(contextlib.redirect_stdout(silence.enter_context(open(os.devnull, "w"))))
                main()
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except UserError as error:
            if type(error) is UserError:
                raise
            raise UserError(str(error)) from error  # the launcher knows one kind by its name
        except OSError as error:
            if threads.is_thread_limit(error):
                raise threads.explained() from error
            if not _is_users(error):
                raise
            raise UserError(
                f"{boundary.said(error)}; finished work is on disk, and the same command resumes once this is corrected"
            ) from error
        except RuntimeError as error:
            if threads.is_thread_limit(error):
                raise threads.explained() from error
            if not distributed.is_connection_error(error):
                raise
            if SIGNALS.received:
                sys.exit(128 + SIGNALS.received)
            if distributed.is_timeout(error):
                raise UserError(waiting.expired()) from error
            # Without the C++ frames.
            raise distributed.ConnectionLost(f"the connection to the other ranks: {first_line(error)}") from None

    return guarded


def _is_users(error: OSError) -> bool:
    """Whether it is about the disk, or about a path that the user gave or what lies in or beside it.

    Any other path is the program's own, and wrong by a fault of the program.
    """
    if error.errno in DISK_ERRORS:
        return True
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes, os.PathLike))]
    return error.errno in PATH_ERRORS and any(_was_given(Path(os.path.abspath(os.fsdecode(name)))) for name in names)


def _was_given(path: Path) -> bool:
    """Whether it is, holds, lies in or stands beside what the command line or the environment names."""
    words = [text for word in sys.argv[1:] for text in (word, word.partition("=")[2])]
    words += [os.environ.get(name, "") for name in FOLDER_VARIABLES]
    words = [word for word in (*words, *OTHER_FOLDERS) if word]
    given = {Path(form(word)) for word in words for form in (os.path.abspath, os.path.realpath)}
    return any(
        own in (path, *path.parents)
        or path in own.parents
        # Hidden files beside an output, and others that belong to it, begin with its name.
        or (path.parent == own.parent and len(own.stem) > 2 and path.name.lstrip(".").startswith(own.stem.lstrip(".")))
        for own in given
    )


def _command() -> str:
    """What the user gave, to be given again."""
    module = sys.modules["__main__"].__spec__
    words = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    start = ["torchrun", "..."] if distributed.launched() else ["python"]
    return shlex.join([*start, *words, *sys.argv[1:]])
