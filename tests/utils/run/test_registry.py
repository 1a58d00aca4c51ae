"""Registries: what changed settings are called, and names that bash can ask for without waiting."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT
from utils.run import registry

REGISTRY = {"slow": {"lr": 0.1, "rounds": 4}, "fast": {"lr": 0.1, "rounds": 0}, "twin": {"lr": 0.1, "rounds": 4}}


@pytest.mark.parametrize(
    "name, given, title, settings",
    [
        ("slow", {}, "slow", {"lr": 0.1, "rounds": 4}),
        ("slow", {"lr": None, "rounds": None}, "slow", {"lr": 0.1, "rounds": 4}),
        ("slow", {"lr": 0.5}, "slow lr=0.5", {"lr": 0.5, "rounds": 4}),
        ("slow", {"lr": 0.5, "rounds": 2}, "slow lr=0.5 rounds=2", {"lr": 0.5, "rounds": 2}),
        ("slow", {"lr": 0.5, "rounds": 4}, "slow lr=0.5", {"lr": 0.5, "rounds": 4}),  # what is the same is not named
        ("slow", {"lr": 0.1}, "slow", {"lr": 0.1, "rounds": 4}),
        ("slow", {"rounds": 0}, "fast", {"lr": 0.1, "rounds": 0}),  # another entry's settings have its name
        ("fast", {"rounds": 0.0}, "fast", {"lr": 0.1, "rounds": 0}),
        ("twin", {}, "twin", {"lr": 0.1, "rounds": 4}),  # its own name before another's
    ],
)
def test_changed_settings_say_what_was_changed(name, given, title, settings):
    before = json.dumps(REGISTRY)
    assert registry.with_changes(REGISTRY, name, given) == (title, settings)
    assert json.dumps(REGISTRY) == before


def ask(module, *words):
    """(exit code, printed, errors) of `python -m module words`; the last line of the errors says if torch came in."""
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = [{module!r}, *{list(words)!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "module, name", [("validate.protocols", "delt"), ("ranking.criteria", "medium"), ("recover.methods", "sre2l")]
)
def test_names_are_printed_without_waiting_for_torch(module, name):
    code, printed, errors = ask(module)
    names = printed.splitlines()
    assert code == 0 and errors == "False\n"
    assert name in names and len(set(names)) == len(names) and all(names)
    assert ask(module, *names) == (0, "", "False\n"), "all of them are known"


@pytest.mark.parametrize("module", ["validate.protocols", "ranking.criteria", "recover.methods"])
def test_an_unknown_name_is_one_line_with_those_that_are_known(module):
    names = ask(module)[1].splitlines()
    for words in (["delt2"], [names[0], "delt2"]):
        code, printed, errors = ask(module, *words)
        message, torch_came_in = errors.splitlines()
        assert code == 2 and printed == "" and torch_came_in == "False"
        assert message.startswith("error: ") and "'delt2' is not known" in message
        assert all(name in message for name in names)
