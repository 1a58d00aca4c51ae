# Sourced by the jobs of this folder, in the repository's root.

# lead SECONDS: how long before the end the job's --signal comes. A stage may use all but the last half minute, in which
# it saves, to end its step. Of a job that is given another --signal set DELT_GRACE.
lead() {
    export DELT_GRACE=${DELT_GRACE:-$(($1 - 30))}
}

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
