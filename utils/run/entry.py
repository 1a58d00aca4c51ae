"""The way into a stage: signals, and the boundary where errors become one line."""

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
from typing import Callable

from torch.distributed.elastic.multiprocessing.errors import record

from utils.run import distributed
from utils.run.errors import UserError
from utils.run.signals import SIGNALS, Stopped

# What a disk or its rights do to a correct program.
MACHINE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ENOENT,
    errno.ENOTDIR,
)


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; show a UserError as one line and end with exit code 2.

    Under torchrun the error goes into torchrun's error file, and utils.run.launch shows that of the first rank to fail.
    """
    # The modules live as long as the process: looking through them for garbage would take a second of its end.
    atexit.register(gc.freeze)
    guarded = _as_user_errors(main)
    try:
        (record(guarded) if distributed.launched() else guarded)()
    except BrokenPipeError:
        # Whoever read the output, head for one, has seen enough; the interpreter would complain at its own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        if not distributed.launched():
            sys.stderr.write(f"error: {one_line(error)}\n")
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


def one_line(message: object) -> str:
    return " ".join(str(message).split())


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
        except OSError as error:
            if error.errno not in MACHINE_ERRORS:
                raise
            raise UserError(
                f"{error.filename or 'writing'}: {error.strerror}; finished work is on disk, and the same command "
                "resumes once this is corrected"
            ) from None
        except RuntimeError as error:
            if not distributed.is_connection_error(error):
                raise
            if SIGNALS.received:
                sys.exit(128 + SIGNALS.received)
            # Without the C++ frames.
            raise distributed.ConnectionLost(
                f"the connection to the other ranks: {str(error).splitlines()[0]}"
            ) from None

    return guarded


def _command() -> str:
    """What the user gave, to be given again."""
    module = sys.modules["__main__"].__spec__
    words = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    start = ["torchrun", "..."] if distributed.launched() else ["python"]
    return shlex.join([*start, *words, *sys.argv[1:]])
