#!/usr/bin/env bash
# CIFAR-10, ResNet-18, 50 images per class.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-cifar10}
TRAIN_DIR=${TRAIN_DIR:-data/cifar10/train}
VAL_DIR=${VAL_DIR:-data/cifar10/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-50}
ITR=${ITR:-1000}
ROUND_ITR=${ROUND_ITR:-125}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
