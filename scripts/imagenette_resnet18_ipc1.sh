#!/usr/bin/env bash
# ImageNette, ResNet-18, 1 image per class. Reference teacher: 90.0 %.
# ITR 4000 without rounds: one image has none. Published: ITR 1000 to 4000, lr 0.25.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-imagenette}
TRAIN_DIR=${TRAIN_DIR:-data/imagenette/train}
VAL_DIR=${VAL_DIR:-data/imagenette/val}
ARCH=${ARCH:-resnet18}
IPC=${IPC:-1}
ITR=${ITR-$(for_method delt 4000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt $ITR)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
