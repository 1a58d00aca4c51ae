#!/usr/bin/env bash
# A whole experiment on one machine of a Slurm cluster, with all of its GPUs. From the repository's root:
#
#   sbatch scripts/slurm/one_node.sh scripts/imagenet1k_resnet18_ipc50.sh
#   sbatch --gpus-per-node=4 --cpus-per-task=32 --export=ALL,IPC=20 scripts/slurm/one_node.sh scripts/cifar10_resnet18_ipc10.sh
#
# Two minutes before its time is over the job saves its state and queues itself again, at most MAX_REQUEUES times (30);
# then it resumes.
# DELT_NPROC is the number of processes on a machine, if not all of its GPUs.
#SBATCH --job-name=delt
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source scripts/slurm/common.sh
lead 120

export DELT_NPROC=${DELT_NPROC:-${SLURM_GPUS_ON_NODE:-1}}
steps bash "$1"
