#!/usr/bin/env bash
# ImageNet-100, ResNet-18, 50 images per class.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-imagenet100}
TRAIN_DIR=${TRAIN_DIR:-data/imagenet100/train}
VAL_DIR=${VAL_DIR:-data/imagenet100/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-50}
ITR=${ITR:-4000}
ROUND_ITR=${ROUND_ITR:-500}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
