#!/usr/bin/env bash
# The synthesis as an array of jobs with one GPU each, which need no connection to each other: each takes its share of the
# units, whenever its turn comes, and whoever is last writes the manifest. The selection has to be there. From the
# repository's root:
#
#   sbatch --array=0-31 scripts/slurm/recover_array.sh scripts/imagenet1k_resnet18_ipc50.sh
#
# A job that failed is given again alone (--array=7): the number of shares stays that of WORLD_SIZE, if that is set.
#SBATCH --job-name=delt-recover
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source scripts/slurm/common.sh

export STAGES=recover NPROC=1 RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=${WORLD_SIZE:-$((SLURM_ARRAY_TASK_MAX + 1))}
steps bash "$1"
