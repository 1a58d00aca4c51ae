#!/usr/bin/env bash
# Makes .venv in the repository's root and installs a requirements file into it; at once when that was done before. A
# second one at the same time waits for the first (.venv.lock).
# Runs on Linux, macOS and WSL, with Python 3.10 or newer.
#
#   bash scripts/setup.sh [FILE]        FILE: requirements.txt (default), requirements-methods.txt (what single methods
#                                       need beyond it) or requirements-test.txt (everything)
#   bash scripts/setup.sh --locked      requirements.lock: exactly the versions that the tests passed with
#   bash scripts/setup.sh --lock        writes requirements.lock: what requirements-test.txt has brought into .venv
#
#   PYTHON=python3.12 bash scripts/setup.sh       makes .venv with another Python than python3
#   TORCH_BUILD=default bash scripts/setup.sh     PyTorch's default build where there is no GPU, too (a login node)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

trap 'exit 130' INT    # pip ends by an exit code of its own

lock=
case ${1:-} in
    --locked) file=requirements.lock ;;
    --lock) file=requirements-test.txt lock=yes ;;
    *) file=${1:-requirements.txt} ;;
esac
[ -f "$file" ] || fail "no such requirements file: $file (there are: $(echo requirements*))"
stamp=.venv/.installed-$(basename "$file")
wanted=$(cat requirements*.txt "$file" | cksum)    # one file names another

installed() {
    [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]
}

# Two at once would install into one another. The lock ends with this process and its pip; flock(1) is not on macOS.
hold() {
    exec 9> .venv.lock    # beside .venv, which --clear empties
    "${PYTHON:-python3}" -c 'import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("setup: another setup.sh is at work here; waiting for its end", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)' 2> /dev/null || true    # without a Python make_venv says what is wrong
}

make_venv() {
    local python=${PYTHON:-python3} clear=
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        fail "needs Python 3.10 or newer, and '$python' is not: set PYTHON (PYTHON=python3.12 bash scripts/setup.sh)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$python' cannot make virtual environments: install its venv package (Debian: apt install python3-venv)"
    # An environment whose Python still runs is repaired in place; one whose Python is gone cannot be.
    .venv/bin/python -c '' 2>/dev/null || clear=--clear
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv $clear .venv || fail "'$python -m venv .venv' failed, its message is above"
}

pip() {    # COMMAND ARGUMENT...
    local command=$1
    shift
    .venv/bin/python -m pip "$command" --no-input --disable-pip-version-check "$@"
}

has_nvidia_gpu() {
    PATH=$PATH:/usr/lib/wsl/lib nvidia-smi -L > /dev/null 2>&1    # WSL keeps it there
}

cpu_versions() {    # PACKAGE: its CPU builds in the package index in use, newest first; nothing if the query fails
    pip index versions --retries 1 --timeout 10 "$1" 2>/dev/null |
        sed -n 's/^Available versions: //p' | tr -d ' ' | tr , '\n' | grep '+cpu$' || true
}

cpu_build() {    # torch==A+cpu torchvision==B+cpu, the newest that go together; nothing if the index has none
    local major minor patch torch torchvision version match
    torch=$(cpu_versions torch)
    [ -n "$torch" ] || return 0
    torchvision=$(cpu_versions torchvision)
    for version in $torch; do
        [ -z "$pinned" ] || [ "$version" = "$pinned+cpu" ] || continue
        IFS=. read -r major minor patch <<< "${version%+cpu}"
        match=0.$((minor + 15)).$patch+cpu    # the torchvision of torch 2.13.0 is 0.28.0
        if [ "$major" = 2 ] && grep -qxF "$match" <<< "$torchvision"; then
            echo "torch==$version torchvision==$match"
            return
        fi
    done
}

choose_torch() {    # sets cpu to the CPU build to install, if any, and says which build is taken
    local found
    grep -qE '^torch([^a-z]|$)' requirements.txt "$file" || return 0
    pinned=$(sed -n 's/^torch==//p' "$file")    # in requirements.lock
    found=$(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    if [ -n "$found" ] && [ "${found%%+*}" = "${pinned:-${found%%+*}}" ]; then return; fi    # what is there is kept

    if [ "$(uname -s)" = Darwin ]; then
        echo "setup: taking PyTorch's default build, the only one for macOS"
    elif [ "${TORCH_BUILD:-}" = default ]; then
        echo "setup: taking PyTorch's default build, by TORCH_BUILD=default"
    elif has_nvidia_gpu; then
        echo "setup: taking PyTorch's default (CUDA) build, as there is an NVIDIA GPU"
    else
        cpu=$(cpu_build)
        if [ -n "$cpu" ]; then
            echo "setup: taking PyTorch's CPU build ($cpu), as there is no NVIDIA GPU"
        else
            echo "setup: taking PyTorch's default build, as there is no CPU build in this package index"
        fi
    fi
}

install() {
    local info cpu= pinned=
    # pip writes a package's RECORD last. A package without one was cut off by a killed install, and pip would
    # take it for whole: without its dist-info it is installed anew.
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$info/RECORD" ] || rm -rf "$info"
    done
    if [ ! -e .venv/bin/activate ] ||
        ! .venv/bin/python -c 'import importlib.metadata as m; m.version("pip")' 2>/dev/null; then
        make_venv
    fi
    choose_torch
    echo "setup: installing $file into .venv (the first time downloads PyTorch, which takes minutes)"
    if [ -z "$cpu" ] || ! pip install --quiet $cpu -r "$file"; then
        [ -z "$cpu" ] || echo "setup: pip could not install $cpu, its message is above; taking PyTorch's default build"
        pip install --quiet -r "$file" || fail "pip could not install $file, its message is above; run this again" \
            "when that is corrected$([ -z "$pinned" ] || echo "; these versions are for the Python named in $file")"
    fi
    echo "$wanted" > "$stamp.partial"
    mv "$stamp.partial" "$stamp"
}

# Without what PyTorch's own wheel pins and what is there for one system only, and without the build (+cpu).
write_lock() {
    local python
    python=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    {
        echo "# The versions that the tests passed with, on Python $python. Written by 'bash scripts/setup.sh --lock',"
        echo "# installed by 'bash scripts/setup.sh --locked'."
        pip list --format=freeze --exclude pip --exclude setuptools --exclude wheel |
            grep -viE '^(nvidia|cuda|triton|pytorch-triton)[-=]' | sed 's/+.*//'
    } > requirements.lock.partial
    mv requirements.lock.partial requirements.lock
    echo "setup: wrote requirements.lock"
}

if ! installed; then
    hold
    installed || install
fi
if [ -n "$lock" ]; then write_lock; fi
