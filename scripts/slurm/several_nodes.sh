#!/usr/bin/env bash
# A whole experiment on several machines of a Slurm cluster, which share their file system. From the repository's root:
#
#   sbatch --nodes=4 scripts/slurm/several_nodes.sh scripts/imagenet1k_resnet18_ipc50.sh
#
# Two minutes before its time is over the job saves its state and queues itself again, at most MAX_REQUEUES times (30);
# then it resumes.
# DELT_NPROC is the number of processes on a machine, if not all of its GPUs.
#SBATCH --job-name=delt
#SBATCH --nodes=2
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

export NNODES=${NNODES:-$SLURM_NNODES} DELT_NPROC=${DELT_NPROC:-${SLURM_GPUS_ON_NODE:-1}}
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
steps bash "$1"    # on each machine, which finds its number in SLURM_NODEID
