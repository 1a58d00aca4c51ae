#!/usr/bin/env bash
# Makes .venv in the repository's root and installs a requirements file into it; at once when that was done before.
#
#   bash scripts/setup.sh [FILE]        FILE: requirements.txt (default) or requirements-test.txt
#   PYTHON=python3.12 bash scripts/setup.sh        makes .venv with another Python than python3
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

file=${1:-requirements.txt}
[ -f "$file" ] || fail "no such requirements file: $file (there are: $(echo requirements*.txt))"
stamp=.venv/.installed-$(basename "$file")
wanted=$(cat requirements.txt "$file" | cksum)

installed() {
    [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

make_venv() {
    local python=${PYTHON:-python3} clear=
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "needs Python 3.10 or newer, and '$python' is none: set PYTHON, as in PYTHON=python3.12 bash scripts/setup.sh"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$python' cannot make virtual environments: install its venv package (Debian, Ubuntu: apt install python3-venv)"
    # An environment whose Python still runs is repaired in place; one whose Python is gone cannot be.
    .venv/bin/python -c '' 2>/dev/null || clear=--clear
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv $clear .venv || fail "'$python -m venv .venv' failed, its message is above"
}

install() {
    local info
    # pip writes a package's RECORD last. A package without one was cut off by a killed install, and pip would
    # take it for whole: without its dist-info it is installed anew.
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$info/RECORD" ] || rm -rf "$info"
    done
    if ! .venv/bin/python -c 'import importlib.metadata as m; m.version("pip")' 2>/dev/null || [ ! -e .venv/bin/activate ]; then
        make_venv
    fi
    echo "setup: installing $file into .venv (the first time downloads PyTorch, which takes minutes)"
    .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r "$file" ||
        fail "pip could not install $file, its message is above; run this again when that is put right"
    echo "$wanted" > "$stamp.partial"
    mv "$stamp.partial" "$stamp"
}

if ! installed; then install; fi
