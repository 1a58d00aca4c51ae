# Sourced by the other scripts: where the repository is, which Python runs it, how an error is told.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# PYTHON_BIN: the Python that has the requirements installed. Set it to use an environment of your own.
if [ -z "${PYTHON_BIN:-}" ]; then
    PYTHON_BIN=$ROOT/.venv/bin/python
    [ -x "$PYTHON_BIN" ] || PYTHON_BIN=python3
fi

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

need_packages() {
    "$PYTHON_BIN" -c 'import sys, importlib.util as u; sys.exit(u.find_spec("torch") is None)' 2>/dev/null ||
        fail "$PYTHON_BIN has no PyTorch: run 'bash scripts/setup.sh' first, or set PYTHON_BIN to a Python that has it"
}
