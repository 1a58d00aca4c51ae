#!/usr/bin/env bash
# Ranks Tiny-ImageNet by a ResNet-18 trained for 50 epochs and selects the 50 medium images of each class.
# The published selection (criterion medium). Reference teacher: 62.0 %.
# RANKER_PATH is that teacher's checkpoint; the default is where scripts/tinyimagenet_resnet18_ipc50.sh leaves it.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
STAGES=${STAGES:-ranking}
DATASET=${DATASET:-tinyimagenet}
TRAIN_DIR=${TRAIN_DIR:-data/tinyimagenet/train}
ARCH=${ARCH:-resnet18}
RANKER_PATH=${RANKER_PATH:-runs/tinyimagenet_resnet18_ipc50/teacher.pth}
CRITERION=${CRITERION:-medium}
IPC=${IPC:-50}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
