#!/usr/bin/env bash
# CIFAR-100, ResNet-18, 1 image per class: one image has no rounds.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-cifar100}
TRAIN_DIR=${TRAIN_DIR:-data/cifar100/train}
VAL_DIR=${VAL_DIR:-data/cifar100/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-1}
ITR=${ITR:-1000}
ROUND_ITR=${ROUND_ITR:-$ITR}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
