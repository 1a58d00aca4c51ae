#!/usr/bin/env bash
# Makes data/NAME/train and data/NAME/val of a known data set; scripts/prepare_data.py has the details.
#
#   bash scripts/prepare_data.sh NAME [--source ARCHIVE_OR_FOLDER] [--output DIR]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need_packages
exec "$PYTHON_BIN" "$ROOT/scripts/prepare_data.py" "$@"
