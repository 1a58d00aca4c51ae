#!/usr/bin/env bash
# ImageWoof, ResNet-18, 1 image per class.
# ITR 4000 without rounds, as published for other data sets (ITR 1000 to 4000, lr 0.25).
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-imagewoof}
TRAIN_DIR=${TRAIN_DIR:-data/imagewoof/train}
VAL_DIR=${VAL_DIR:-data/imagewoof/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-1}
ITR=${ITR-$(for_method delt 4000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt $ITR)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
