#!/usr/bin/env bash
# Checks format and style (ruff), then runs the tests on several cores. Arguments go to pytest.
#
#   bash scripts/test.sh             everything
#   bash scripts/test.sh --fast      without the tests that are marked slow: three minutes on two cores
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
# One worker more than cores: those of the stages' tests wait for processes of their own much of the time.
workers=$(.venv/bin/python -c 'from utils.run.cpus import available_cpus as cpus; print(min(cpus() + 1, 8))')
exec .venv/bin/python -m pytest -q -n "$workers" --dist worksteal tests "$@"
