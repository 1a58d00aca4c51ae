#!/usr/bin/env bash
# Checks format and style (ruff), then runs the tests on several cores. Arguments go to pytest.
#
#   bash scripts/test.sh             everything
#   bash scripts/test.sh --fast      without the tests that are marked slow: two minutes on two cores
#   bash scripts/test.sh -k recover
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not slow" "$@"
fi
bash scripts/setup.sh requirements-test.txt
.venv/bin/python -m ruff format --check .
.venv/bin/python -m ruff check .
exec .venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests "$@"
