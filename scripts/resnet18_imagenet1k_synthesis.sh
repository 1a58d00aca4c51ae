#!/usr/bin/env bash
# Synthesises ImageNet-1K from selected images, with torchvision's ResNet-18 as the teacher.
# The published setting: ITR 4000, ROUND_ITR 500, lr 0.25.
# INIT_PATH holds the selection; the default is where scripts/imagenet1k_resnet18_ipc50.sh leaves it.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
STAGES=${STAGES:-recover}
DATASET=${DATASET:-imagenet1k}
ARCH=${ARCH:-resnet18}
RANKER_PATH=${RANKER_PATH:-torchvision}
INIT_PATH=${INIT_PATH:-runs/imagenet1k_resnet18_ipc50/init}
IPC=${IPC:-50}
ITR=${ITR-$(for_method delt 4000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt 500)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
