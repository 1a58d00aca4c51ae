# Sourced by the jobs of this folder, in the repository's root.

MAX_REQUEUES=${MAX_REQUEUES:-30}    # how often a job is queued again: a month of days, and not for ever
case $MAX_REQUEUES in
    *[!0-9]*)
        echo "MAX_REQUEUES: '$MAX_REQUEUES' is no whole number" >&2
        exit 2 ;;
esac

# lead SECONDS: how long before the end the job's --signal comes. A stage may use all but the last half minute, in which
# it saves, to end its step. Of a job that is given another --signal set DELT_GRACE.
lead() {
    export DELT_GRACE=${DELT_GRACE:-$(($1 - 30))}
}

# steps COMMAND...: the command on each machine of the job. A job that a signal ended is queued again, and resumes.
steps() {
    local code=0 before=${SLURM_RESTART_COUNT:-0}    # which Slurm counts
    # srun does not take the job's CPUs of a task by itself: a machine's processes would share one.
    srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$@" || code=$?
    if [ "$code" -ge 128 ] && [ "$before" -ge "$MAX_REQUEUES" ]; then
        echo "ended by signal $((code - 128)); finished work is saved, but the job has started again $before times" \
            "and is not queued once more (MAX_REQUEUES=$MAX_REQUEUES): look for the cause above, or submit it to go on"
    elif [ "$code" -ge 128 ]; then
        echo "ended by signal $((code - 128)); finished work is saved, and the job is queued again" \
            "($((before + 1)) of at most $MAX_REQUEUES times)"
        scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    fi
    return "$code"
}
