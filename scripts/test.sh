#!/usr/bin/env bash
# Runs the tests, on several cores. Arguments go to pytest, as in: bash scripts/test.sh -k recover
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh requirements-test.txt
exec .venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal tests "$@"
