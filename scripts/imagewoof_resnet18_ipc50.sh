#!/usr/bin/env bash
# ImageWoof, ResNet-18, 50 images per class.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-imagewoof}
TRAIN_DIR=${TRAIN_DIR:-data/imagewoof/train}
VAL_DIR=${VAL_DIR:-data/imagewoof/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-50}
ITR=${ITR:-4000}
ROUND_ITR=${ROUND_ITR:-500}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
