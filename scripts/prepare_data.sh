#!/usr/bin/env bash
# Makes data/NAME/train and data/NAME/val of a known data set; utils/data/prepare.py has the details.
#
#   bash scripts/prepare_data.sh NAME [--source ARCHIVE_OR_FOLDER] [--output DIR]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_packages
# Relative paths are the caller's, so the folder stays; a package `utils` in it must not be taken for ours.
export PYTHONSAFEPATH=1 PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON_BIN" -m utils.data.prepare "$@"
