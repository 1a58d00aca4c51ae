"""Where an error becomes one line, without PyTorch: utils.run.entry adds signals and ranks, for the stages."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import Any, Callable

from utils.run.errors import UserError, one_line

DEBUG = "DELT_DEBUG"  # in the environment: 1 shows the traceback of every error


class Parser(argparse.ArgumentParser):
    """argparse that knows whole flags only, and whose error is a UserError."""

    def __init__(self, prog: str, description: str, **settings: Any):
        super().__init__(prog=f"python -m {prog}", description=description, allow_abbrev=False, **settings)

    def error(self, message: str) -> None:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(main: Callable[[], int | None]) -> int:
    """Run a command's main, and return the exit code: its own, or 2 after the line of a UserError or an OSError."""
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return unread()
    except UserError as error:
        show(error)
    except OSError as error:
        show(UserError(said(error)), error)
    except KeyboardInterrupt:
        return 130
    return 2


def show(error: UserError, cause: BaseException | None = None, line: bool = True) -> None:
    """Write the error as one line. With DELT_DEBUG=1 the traceback stands before it, that of the `cause` if given."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        _print_traceback(cause or error)
    if line:
        sys.stderr.write(f"error: {one_line(error)}\n")


def said(error: OSError) -> str:
    """What is wrong, and with which file."""
    return f"{error.filename or 'writing'}: {error.strerror}" if error.strerror else one_line(error)


def unread() -> int:
    """The exit code where whoever read the output, head for one, has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter would complain at its own flush
    return 141


def _print_traceback(error: BaseException) -> None:
    """With the errors that it stands for, which `from None` hides."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = cause.__cause__ is not None
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)
