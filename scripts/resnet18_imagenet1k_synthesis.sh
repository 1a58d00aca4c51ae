#!/usr/bin/env bash
# Synthesises ImageNet-1K from selected images, with torchvision's ResNet-18 as the teacher.
# INIT_PATH holds the selection; the default is where scripts/imagenet1k_resnet18_ipc50.sh leaves it.
STAGES=${STAGES:-recover}
DATASET=${DATASET:-imagenet1k}
ARCH=${ARCH:-resnet18}
INIT_PATH=${INIT_PATH:-runs/imagenet1k_resnet18_ipc50/init}
SYN_PATH=${SYN_PATH:-runs/resnet18_imagenet1k_synthesis/syn}
IPC=${IPC:-50}
ITR=${ITR:-4000}
ROUND_ITR=${ROUND_ITR:-500}
source "$(dirname "${BASH_SOURCE[0]}")/distill.sh"
