#!/usr/bin/env bash
# The synthesis as an array of jobs with one GPU each, which need no connection to each other: each takes the next free
# unit until none is left, and the last one writes the manifest. The selection has to be there. From the repository's
# root:
#
#   sbatch --array=0-31 scripts/slurm/recover_array.sh scripts/imagenet1k_resnet18_ipc50.sh
#
# The result does not depend on the number of tasks. What a task that failed leaves undone is done by the others, or by
# a further array of any size (--array=7), whose numbers are not those of running tasks.
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
lead 120

export DELT_STAGES=recover DELT_NPROC=1
# RANK names the task's lock. The number of tasks divides the check of the images and the progress bar, not the units.
export RANK=$SLURM_ARRAY_TASK_ID WORLD_SIZE=$((SLURM_ARRAY_TASK_MAX + 1))
steps bash "$1"
