"""The jobs for Slurm, on a cluster of stubs."""

import os
import re
import signal
import subprocess
import time

import pytest

from script_stubs import ROOT, SCRIPTS, command

TOLD = "RANK|WORLD_SIZE|STAGES|NPROC|DELT_STAGES|DELT_NPROC|NNODES|MASTER_ADDR|MASTER_PORT"
ARRAY = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MAX": "31", "SLURM_ARRAY_JOB_ID": "40"}


@pytest.fixture
def slurm(tmp_path):
    """Runs a job's script as one of its nodes; gives the process, what the experiment finds in the environment, and
    what scontrol was asked."""
    notes = tmp_path / "notes"
    flags = 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"'
    bin = command(tmp_path / "bin" / "srun", f'#!/bin/sh\necho "$1 $2" > {tmp_path}/srun\n{flags}\n').parent
    scontrol = f'[ "$1" = show ] && printf "node7\\nnode8\\n"; echo "$@" >> {notes}'
    command(bin / "scontrol", f"#!/bin/sh\n{scontrol}\n")
    script = tmp_path / "experiment.sh"
    script.write_text(f'env | grep -E "^({TOLD})=" | sort > {tmp_path}/seen\nexit "${{CODE:-0}}"\n')
    machine = {
        "PATH": f"{bin}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "41",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }

    def run(job, **variables):
        notes.write_text("")
        done = subprocess.run(
            ["bash", SCRIPTS / "slurm" / f"{job}.sh", script],
            text=True,
            capture_output=True,
            cwd=tmp_path,
            env={**machine, **variables},
        )
        seen = dict(line.split("=") for line in (tmp_path / "seen").read_text().splitlines())
        return done, seen, notes.read_text()

    return run


def test_jobs_tell_the_script_where_it_is(slurm):
    _, seen, _ = slurm("one_node")
    assert seen == {"DELT_NPROC": "4"}
    _, seen, _ = slurm("several_nodes")
    assert seen == {"DELT_NPROC": "4", "NNODES": "2", "MASTER_ADDR": "node7", "MASTER_PORT": "20041"}


def test_a_machine_gets_the_cpus_that_the_job_has(slurm, tmp_path):
    """srun takes them from no one but its own flag, and gives its one task a single core else."""
    slurm("several_nodes", SLURM_CPUS_PER_TASK="64")
    assert (tmp_path / "srun").read_text() == "--kill-on-bad-exit=1 --cpus-per-task=64\n"
    slurm("several_nodes")
    assert "cpus" not in (tmp_path / "srun").read_text()


def test_each_task_of_an_array_is_one_process_with_a_number(slurm):
    _, seen, _ = slurm("recover_array", NPROC="64", STAGES="all", WORLD_SIZE="2", **ARRAY)
    assert (seen["DELT_STAGES"], seen["DELT_NPROC"], seen["RANK"]) == ("recover", "1", "5")
    assert int(seen["WORLD_SIZE"]) > 5, "a rank below the number of processes, whatever is exported"


@pytest.mark.parametrize("job", ["one_node", "several_nodes"])
def test_processes_can_be_chosen(slurm, job):
    _, seen, _ = slurm(job, DELT_NPROC="2", NPROC="64")
    assert seen["DELT_NPROC"] == "2"


@pytest.mark.parametrize("job, more", [("one_node", {}), ("several_nodes", {}), ("recover_array", ARRAY)])
def test_a_job_is_not_queued_again_for_ever(slurm, job, more):
    for restarts, limit, again in ((None, None, True), (2, 3, True), (3, 3, False), (4, 3, False), (0, 0, False)):
        counted = {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
        counted |= {} if limit is None else {"MAX_REQUEUES": str(limit)}
        done, _, asked = slurm(job, CODE="143", **counted, **more)
        assert done.returncode == 143 and ("requeue" in asked) is again
        assert ("not queued once more (MAX_REQUEUES=" in done.stdout) is not again
    assert "requeue" in slurm(job, CODE="143", SLURM_RESTART_COUNT="29", **more)[2]
    assert "requeue" not in slurm(job, CODE="143", SLURM_RESTART_COUNT="1000", **more)[2], "there is a limit by itself"


@pytest.mark.parametrize("job", ["one_node", "several_nodes", "recover_array"])
def test_the_grace_of_a_signal_is_the_lead_time_of_the_job(slurm, tmp_path, job):
    """But for half a minute, in which the state is saved."""
    script = tmp_path / "experiment.sh"
    script.write_text(f"echo GRACE=$DELT_GRACE > {tmp_path}/seen\n")
    [seconds] = re.findall(
        r"^#SBATCH --signal=TERM@(\d+)$", (SCRIPTS / "slurm" / f"{job}.sh").read_text(), re.MULTILINE
    )
    _, seen, _ = slurm(job, **ARRAY)
    assert int(seen["GRACE"]) == int(seconds) - 30 > 8
    _, seen, _ = slurm(job, DELT_GRACE="500", **ARRAY)
    assert seen["GRACE"] == "500"


def test_a_signal_to_the_script_alone_reaches_the_stage_which_saves(tmp_path):
    """As Slurm sends it: to the task's first process, the end of which would end everything else in it."""
    stage = """#!/bin/bash
case "$*" in *"-m recover "*) ;; *) exit 0;; esac
trap 'sleep 1; echo saved >> "$RECORD"; exit 143' TERM
echo started >> "$RECORD"
for _ in $(seq 300); do sleep 0.1; done
"""
    record = tmp_path / "record"
    for name in ("init", "val", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "teacher.pth").touch()
    env = {
        "PATH": os.environ["PATH"],
        "PYTHON_BIN": str(command(tmp_path / "python", stage)),
        "RECORD": str(record),
        "DELT_STAGES": "recover validate",
        "VAL_DIR": str(tmp_path / "val"),
        "RANKER_PATH": str(tmp_path / "teacher.pth"),
        "RUN_DIR": str(tmp_path / "run"),
        "BASELINES": "",
        "DELT_GRACE": "90",
    }
    script = subprocess.Popen(["bash", SCRIPTS / "distill.sh"], text=True, env=env, stdout=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (record.exists() and record.read_text()):
        assert time.monotonic() < until and script.poll() is None
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    out, _ = script.communicate(timeout=60)
    assert script.returncode == 143 and record.read_text() == "started\nsaved\n", "and no other stage begins"
    assert "DELT_GRACE" not in out, "it is not said to be ignored"


def test_a_job_that_a_signal_ended_is_queued_again(slurm):
    done, _, asked = slurm("one_node", CODE="143")
    assert done.returncode == 143 and "requeue 41" in asked and "saved" in done.stdout
    _, _, asked = slurm("recover_array", CODE="143", **ARRAY)
    assert "requeue 40_5" in asked
    done, _, asked = slurm("one_node", CODE="2")
    assert done.returncode == 2 and "requeue" not in asked, "an error would come again"


def test_a_limit_that_is_no_number_ends_the_job(slurm, tmp_path):
    (tmp_path / "seen").touch()  # by no experiment
    done, _, asked = slurm("one_node", CODE="143", MAX_REQUEUES="none")
    assert done.returncode == 2 and "requeue" not in asked and "MAX_REQUEUES: 'none' is no " in done.stderr
