#!/usr/bin/env bash
# ImageNet-1K, ResNet-18, 50 images per class. The teacher is torchvision's.
# The published setting: ITR 4000, ROUND_ITR 500, lr 0.25.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-imagenet1k}
TRAIN_DIR=${TRAIN_DIR:-data/imagenet1k/train}
VAL_DIR=${VAL_DIR:-data/imagenet1k/val}
ARCH=${ARCH:-resnet18}
RANKER_PATH=${RANKER_PATH:-torchvision}
IPC=${IPC:-50}
ITR=${ITR-$(for_method delt 4000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt 500)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
