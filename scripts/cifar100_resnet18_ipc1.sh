#!/usr/bin/env bash
# CIFAR-100, ResNet-18, 1 image per class. Reference teacher: 72.3 %.
# ITR 1000 without rounds, as published for other data sets (ITR 1000 to 4000, lr 0.25).
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-cifar100}
TRAIN_DIR=${TRAIN_DIR:-data/cifar100/train}
VAL_DIR=${VAL_DIR:-data/cifar100/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-1}
ITR=${ITR-$(for_method delt 1000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt $ITR)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
