#!/usr/bin/env bash
# The whole method in one command, on a plain CPU and without a download of data: makes the environment, then distils a
# cut of Fashion-MNIST that is part of this repository, or an ImageFolder of your own:
#
#   bash scripts/quickstart.sh
#   TRAIN_DIR=my/train VAL_DIR=my/val bash scripts/quickstart.sh
#
# Runs on Linux, macOS and WSL. Set any variable in the environment: IPC=20, but DELT_ARCH=resnet18 for ARCH and the
# like; scripts/distill.sh lists them.
set -euo pipefail
own_python=${PYTHON_BIN:-}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

case ${TRAIN_DIR:+train}/${VAL_DIR:+val} in
    train/) fail "TRAIN_DIR is set and VAL_DIR is not: set both, or none" ;;
    /val) fail "VAL_DIR is set and TRAIN_DIR is not: set both, or none" ;;
    /) [ -z "${DATASET:-}" ] || fail "DATASET is set and TRAIN_DIR is not: set TRAIN_DIR and VAL_DIR to its folders, too" ;;
esac

RUN_DIR=${RUN_DIR:-runs/quickstart}
ARCH=${ARCH:-conv3}
IPC=${IPC:-10}
METHOD=${METHOD:-delt+}                    # beats random images, with a teacher's labels and without (docs/recipes.md)
[ -n "${ITR+given}" ] || MOST_ITR=${MOST_ITR-200}    # of another METHOD
ITR=${ITR-$(for_method delt 200)}          # a twentieth of the published 4000
ROUND_ITR=${ROUND_ITR-$(for_method delt 25)}    # as many rounds as published: eight
SEEDS=${SEEDS:-1}
PROTOCOL=${PROTOCOL:-delt hard}
BASELINES=${BASELINES-random}
SQUEEZE_EPOCHS=${SQUEEZE_EPOCHS:-4}
# Few epochs on centred images learn more from small batches, and from the images as they stand.
SQUEEZE_ARGS=${SQUEEZE_ARGS---batch-size 64 --crop-padding 0}
VAL_EPOCHS=${VAL_EPOCHS:-60}               # published: 300
VALIDATE_ARGS=${VALIDATE_ARGS---evaluations 2}

if [ -z "$own_python" ]; then
    bash scripts/setup.sh requirements.txt
    PYTHON_BIN=$ROOT/.venv/bin/python
fi
if [ -z "${TRAIN_DIR:-}" ]; then
    DATASET=fashion_mnist_cut
    "$PYTHON_BIN" -m utils.data.prepare "$DATASET" --output "$RUN_DIR/data"
    TRAIN_DIR=$RUN_DIR/data/train
    VAL_DIR=$RUN_DIR/data/val
fi

source scripts/distill.sh
