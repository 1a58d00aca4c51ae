#!/usr/bin/env bash
# ImageNette, ResNet-18, 1 image per class: one image has no rounds.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-imagenette}
TRAIN_DIR=${TRAIN_DIR:-data/imagenette/train}
VAL_DIR=${VAL_DIR:-data/imagenette/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-1}
ITR=${ITR:-4000}
ROUND_ITR=${ROUND_ITR:-$ITR}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
