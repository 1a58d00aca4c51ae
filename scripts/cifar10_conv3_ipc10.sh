#!/usr/bin/env bash
# CIFAR-10, Conv-3, 10 images per class, beside random real images and the selection itself.
# Each variable can be set in the environment; scripts/distill.sh lists them all.
DATASET=${DATASET:-cifar10}
TRAIN_DIR=${TRAIN_DIR:-data/cifar10/train}
VAL_DIR=${VAL_DIR:-data/cifar10/val}
ARCH=${ARCH:-conv3}
IPC=${IPC:-10}
ITR=${ITR:-1000}
ROUND_ITR=${ROUND_ITR:-125}
SEEDS=${SEEDS:-2}
BASELINES=${BASELINES-random selection}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
