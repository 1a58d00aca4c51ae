"""Command lines, and what the parsers of the modules say to them, without running anything."""

import contextlib
import functools
import importlib
import importlib.util
import io
import sys
from unittest import mock

from utils.run.errors import UserError


@functools.cache
def module_of(name: str):
    """The module that `python -m NAME` runs; None if there is none."""
    spec = None
    with contextlib.suppress(ModuleNotFoundError):  # of the package around it
        spec = importlib.util.find_spec(name)
    return spec and importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)


def called(function, name: str, words: list[str]) -> str:
    """What a parser says: its help, or its error."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *words]), contextlib.redirect_stdout(said):
        with contextlib.redirect_stderr(said):
            try:
                function()
            except SystemExit:
                return said.getvalue()
            except UserError as error:
                return f"error: {error}"
    return ""


def refusal(words: list[str]) -> str:
    """What the parser of MODULE says against MODULE ARGUMENTS; empty where it takes them, or there is none."""
    name, *rest = words
    parse = getattr(module_of(name), "parse", None)
    return called(parse, name, rest) if parse else ""
