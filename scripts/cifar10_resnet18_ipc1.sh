#!/usr/bin/env bash
# CIFAR-10, ResNet-18, 1 image per class. Reference teacher: 93.9 %.
# METHOD delt+, of one image from herding of all: docs/recipes.md. With DELT_METHOD=delt ITR 1000 without rounds, as
# one image has none; published: ITR 1000 to 4000, lr 0.25.
# Set any variable in the environment: IPC=20, but DELT_ARCH=conv3 for ARCH and the like; scripts/distill.sh lists them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DATASET=${DATASET:-cifar10}
TRAIN_DIR=${TRAIN_DIR:-data/cifar10/train}
VAL_DIR=${VAL_DIR:-data/cifar10/val}
ARCH=${ARCH:-resnet18}
METHOD=${METHOD:-delt+}
IPC=${IPC:-1}
CRITERION=${CRITERION-$(for_method delt+ herding)}
ITR=${ITR-$(for_method delt 1000)}
ROUND_ITR=${ROUND_ITR-$(for_method delt $ITR)}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
