#!/usr/bin/env bash
# Trains ResNet-18 students on the images of resnet18_imagenet1k_synthesis.sh (SYN_PATH) and tests them on VAL_DIR.
# The published setting: protocol delt, 300 epochs, three seeds.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
STAGES=${STAGES:-validate}
DATASET=${DATASET:-imagenet1k}
VAL_DIR=${VAL_DIR:-data/imagenet1k/val}
ARCH=${ARCH:-resnet18}
RANKER_PATH=${RANKER_PATH:-torchvision}
IPC=${IPC:-50}
STUDENT=${STUDENT:-resnet18}
SYN_PATH=${SYN_PATH:-runs/resnet18_imagenet1k_synthesis/syn}
BASELINES=${BASELINES-}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
