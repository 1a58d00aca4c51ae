# Sourced by the jobs of this folder, in the repository's root.

# steps COMMAND...: the command on each machine of the job. A job that a signal ended is queued again, and resumes.
steps() {
    local code=0
    srun --kill-on-bad-exit=1 "$@" || code=$?
    if [ "$code" -ge 128 ]; then
        echo "ended by signal $((code - 128)); finished work is saved, and the job is queued again"
        scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    fi
    return "$code"
}
