"""Packages that only some methods and commands need, and that requirements.txt leaves out."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

from utils.run.errors import UserError


@dataclass(frozen=True)
class Package:
    module: str
    file: str = ""  # of requirements, that installs it; empty: it is installed by itself


PACKAGES = {
    "POT": Package("ot", "requirements-methods.txt"),
    "datasets": Package("datasets"),
    "tensorboard": Package("tensorboard"),
    "wandb": Package("wandb"),
}


def needed(name: str, what: str) -> ModuleType:
    """The package's module. Raises UserError where it is not installed, and `what` needs it."""
    package = PACKAGES[name]
    try:
        return importlib.import_module(package.module)
    except ImportError:
        raise UserError(f"{what} need the package {name}, {how_to_get(name)}") from None


def how_to_get(name: str) -> str:
    """Ends a sentence that names the package."""
    return f"which is not installed: {how_to_install(name)}"


def how_to_install(name: str) -> str:
    by_pip, file = f"pip install {name}", PACKAGES[name].file
    return f"bash scripts/setup.sh {file}, or {by_pip}" if file else by_pip


def is_missing(name: str) -> bool:
    """Without importing it, which takes its time."""
    try:
        return importlib.util.find_spec(PACKAGES[name].module) is None
    except ValueError:  # what find_spec makes of a module that says it is none
        return True
