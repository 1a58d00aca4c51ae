#!/usr/bin/env bash
# CIFAR-100, ResNet-18, 50 images per class. Reference teacher: 72.3 %.
# The setting published for ImageNet-1K: ITR 4000, ROUND_ITR 500, lr 0.25.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-cifar100}
TRAIN_DIR=${TRAIN_DIR:-data/cifar100/train}
VAL_DIR=${VAL_DIR:-data/cifar100/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-50}
ITR=${ITR-$(for_method delt 4000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt 500)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
