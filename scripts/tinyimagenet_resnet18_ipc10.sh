#!/usr/bin/env bash
# Tiny-ImageNet, ResNet-18, 10 images per class.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-tinyimagenet}
TRAIN_DIR=${TRAIN_DIR:-data/tinyimagenet/train}
VAL_DIR=${VAL_DIR:-data/tinyimagenet/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-10}
ITR=${ITR:-4000}
ROUND_ITR=${ROUND_ITR:-500}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
