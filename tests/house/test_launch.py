"""utils.run.launch and torchrun: whatever happens to a rank, one line says it, at once."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from launching import ENV, LAUNCH, launch, ranks_of
from torch.distributed import run
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from conftest import ROOT
from utils.run import launch as launcher

pytestmark = pytest.mark.slow

# Far above what was measured (under 3 seconds), so that no busy machine fails it, and below what waiting took once.
SECONDS = 10

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def the_error(outcome):
    """The one line of an outcome's stderr, without `error: `."""
    [line] = [line for line in outcome.stderr.splitlines() if line and "%|" not in line]  # and progress bars
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def run_script(place, text, *words, ranks=2, start=LAUNCH):
    """A script of two ranks, whose `main` entry.run calls; the time of its end is that of launcher and all."""
    script = place / "script.py"
    script.write_text(text)
    line = [*start, "--nproc-per-node", str(ranks), str(script), *map(str, words)]
    env = {**ENV, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=ROOT, text=True, capture_output=True, env=env, timeout=120)


# --- machines that do not meet ---------------------------------------------------------------------------------------


def test_machines_that_do_not_meet_are_told_where_in_one_line(monkeypatch, capsys):
    def never(args):
        raise RendezvousConnectionError("The connection has failed. See inner exception.") from OSError("no such host")

    monkeypatch.setattr(run, "run", never)
    line = "launch --nnodes 2 --rdzv-backend c10d --rdzv-endpoint nowhere:29400 -m recover"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit, match="1"):
        launcher.main()
    [said] = capsys.readouterr().err.split("\n")[1:-1]
    assert said.startswith("error: the 2 machines did not meet at nowhere:29400 ") and ": no such host; " in said


IMPATIENT = """
import functools
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

# torchrun's 300 seconds, shortened
LocalElasticAgent.__init__ = functools.partialmethod(LocalElasticAgent.__init__, exit_barrier_timeout=1)
from utils.run import launch

launch.prepare()
launch.main()
"""


def test_a_machine_that_is_done_waits_for_the_others(tmp_path):
    """It is the one at which all meet: where it left, the other's ranks would be ended."""
    (tmp_path / "launch.py").write_text(IMPATIENT)
    (tmp_path / "work.py").write_text("import sys, time\ntime.sleep(float(sys.argv[1]))\nprint('worked')\n")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "launch.py", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "stage"]
    line += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "work.py"]
    run = dict(cwd=tmp_path, env={**ENV, "PYTHONPATH": str(ROOT)}, text=True, stdout=-1, stderr=-1)
    machines = [subprocess.Popen([*line, "0"], **run)]
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            break
        time.sleep(0.1)
    machines.append(subprocess.Popen([*line, "8"], **run))
    said = [machine.communicate(timeout=100) for machine in machines]
    assert [(machine.returncode, out) for machine, (out, _) in zip(machines, said)] == [(0, "worked\n")] * 2, said


# --- a wrong path ----------------------------------------------------------------------------------------------------

TIMED = """
import importlib, sys, time
from utils.run import entry
stage, stamp = sys.argv.pop(1), sys.argv.pop(1)
run = importlib.import_module(f"{stage}.__main__").main
def main():
    try:
        run()
    finally:
        open(stamp, "a").write(f"{time.time()}\\n")
entry.run(main)
"""


@pytest.mark.parametrize("stage", ["squeeze", "ranking", "recover", "validate"])
def test_a_wrong_path_is_one_line_in_a_few_seconds(place, stage):
    """In squeeze and validate after the ranks have joined, elsewhere they never do."""
    flag = {"squeeze": "train_dir", "ranking": "train_dir", "recover": "init_dir", "validate": "syn_dir"}[stage]
    words = place.command(stage, **{flag: place / "nowhere"})
    done = run_script(place, TIMED, stage, place / "stamp", *words)
    ended = time.time()
    message = the_error(done)
    assert str(place / "nowhere") in message and "--" + flag.replace("_", "-") in message
    assert (done.returncode, done.stdout) == (2, "")
    failed = [float(line) for line in (place / "stamp").read_text().split()]
    assert ended - min(failed) < SECONDS
    print(f"{stage}: {ended - min(failed):.2f} s from the first rank's error to the launcher's end")


def test_a_rank_that_fails_before_the_others_have_joined(place):
    """Rank 1 joins, and waits for rank 0, which never comes."""
    text = """
import os, time
from utils.run import entry
from utils.run.distributed import process_group
from utils.run.errors import UserError
import torch
def main():
    if os.environ["RANK"] == "0":
        time.sleep(2)
        open("{stamp}", "w").write(str(time.time()))
        raise UserError("nowhere: no such folder")
    with process_group(torch.device("cpu")):
        pass
entry.run(main)
"""
    for failing in ("0", "1"):
        done = run_script(place, text.replace("{stamp}", str(place / "stamp")).replace('"0"', f'"{failing}"'))
        assert time.time() - float((place / "stamp").read_text()) < SECONDS
        assert the_error(done) == "nowhere: no such folder" and done.returncode == 2


UNCONNECTED = """
import os, pathlib, time, torch
from utils.run import entry
from utils.run.distributed import process_group
from utils.run.errors import UserError
import torch.distributed as dist
def unconnected(*_, **__):
    raise dist.DistNetworkError("Connection reset by peer\\nException raised from throwError (C++ frames follow)")
def main():
    if os.environ["RANK"] == "1":
        {what}
    dist.rendezvous = unconnected
    with process_group(torch.device("cpu")):
        pass
"""
# What a rank has said is in its error file: the second says it after the first, which has not ended by then.
IN_TURN = """
errors = pathlib.Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]
def wait_for(rank):
    path = errors / rank / "error.json"
    while not path.exists() or not path.read_text().endswith("}"):
        time.sleep(0.02)
def end(code, end=os._exit):
    wait_for("1")
    end(code)
os._exit = end
"""


def test_a_rank_that_ends_while_another_one_joins(place):
    """What the other one sees of it is a connection that breaks, even if it says so first."""
    text = UNCONNECTED.replace("{what}", "wait_for('0'); raise UserError('the disk is full')")
    done = run_script(place, f"{text}{IN_TURN}entry.run(main)")
    assert the_error(done) == "the disk is full" and done.returncode == 2


def test_a_connection_that_fails_by_itself(place):
    done = run_script(place, UNCONNECTED.replace("{what}", "pass") + "entry.run(main)")
    assert re.fullmatch("rank [01]: the connection to the other ranks: Connection reset by peer", the_error(done))
    assert done.returncode == 1


def test_torchrun_itself_ends_with_the_message_too(place):
    line = [*TORCHRUN, "--nproc-per-node", "2", "-m", "ranking"]
    words = place.command("ranking", train_dir=place / "nowhere")
    done = subprocess.run([*line, *words], cwd=ROOT, text=True, capture_output=True, env=ENV)
    assert done.returncode != 0
    end = done.stderr.splitlines()[-6:]
    assert any(f"UserError: --train-dir {place / 'nowhere'}: no such folder" in line for line in end), done.stderr


# --- an error of one rank --------------------------------------------------------------------------------------------


def test_an_image_that_only_rank_1_reads(place):
    """Of several processes each decodes a part of the images before the work: here the second, fourth, ..."""
    broken = sorted(place.train.glob("*/*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:60])
    done = launch(place, "ranking", 2)
    assert the_error(done).startswith(f"{broken}: cannot be read") and done.returncode == 2
    assert not (place / "ranking.csv").exists() and not (place / "selected").exists()


ONE_FAILS = """
import os, time, torch
from utils.run import distributed, entry
from utils.run.errors import UserError
def main():
    with distributed.process_group(torch.device("cpu")):
        distributed.barrier()
        if distributed.get_rank() == 1:
            {what}
        {others}
entry.run(main)
"""
WAIT = {
    "in a collective": "distributed.barrier()",
    "in Python": "time.sleep(60)",
    "about to fail too": "distributed.all_gather(1); raise UserError('what follows')",
}


@pytest.mark.parametrize("others", WAIT.values(), ids=WAIT)
def test_an_error_of_rank_1_alone(place, others):
    text = ONE_FAILS.replace("{what}", "raise UserError('the disk is full')").replace("{others}", others)
    done = run_script(place, text)
    assert the_error(done) == "the disk is full" and done.returncode == 2


@pytest.mark.parametrize("others", WAIT.values(), ids=WAIT)
def test_a_rank_that_is_killed_is_named(place, others):
    done = run_script(place, ONE_FAILS.replace("{what}", "os.kill(os.getpid(), 9)").replace("{others}", others))
    message = the_error(done)
    assert message.startswith("rank 1 was ended by SIGKILL") and "the same command resumes" in message
    assert done.returncode not in (0, None)


def test_a_fault_of_the_program_has_its_traceback_and_one_line(place):
    text = ONE_FAILS.replace("{what}", "raise ValueError('no such thing')").replace("{others}", WAIT["in a collective"])
    done = run_script(place, text)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.stderr.count("Traceback") == 1 and done.returncode == 1
    assert lines[-1] == "error: ValueError: no such thing"


def test_an_error_of_all_ranks_is_said_once(place):
    done = launch(place, "validate", 3, lr=1e30, mix="none")
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("error: conv3 seed 0: loss is") and "epoch 1, step 2" in line and "--lr" in line
    assert not (place / "measured" / "results.csv").exists()


def test_an_error_has_a_line_of_its_own_behind_a_bar(place):
    text = ONE_FAILS.replace("{what}", "time.sleep(1); os.kill(os.getpid(), 9)").replace(
        "{others}", "import sys; sys.stderr.write('ranking:  50%|###'); sys.stderr.flush(); distributed.barrier()"
    )
    done = run_script(place, text)
    assert done.stderr.splitlines()[-1].startswith("error: rank 1 was ended by SIGKILL")


# --- signals ---------------------------------------------------------------------------------------------------------


def test_ranks_have_their_grace_and_time_to_save_before_they_are_killed(monkeypatch):
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "DELT_GRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["launch", "--nproc-per-node", "2", "x.py"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    launcher.prepare()
    assert float(os.environ.pop("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")) >= 8 + 30
    os.environ["DELT_GRACE"] = "90"
    launcher.prepare()
    config, _, _ = run.config_from_args(run.parse_args(sys.argv[1:]))
    assert config.shutdown_timeout >= 90 + 30


def test_a_grace_that_is_no_number_is_one_line(place):
    line = [*LAUNCH, "--nproc-per-node", "2", "-m", "squeeze", *place.command("squeeze")]
    done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True, env={**ENV, "DELT_GRACE": "soon"})
    assert the_error(done).startswith("DELT_GRACE=soon") and done.returncode == 2


def test_ranks_that_are_signalled_twice_save(place):
    """Ctrl-C goes to all processes of a terminal, and the launcher sends its own signal to the ranks."""
    words = place.command("squeeze", epochs=4000, save_every=1000)
    line = [*LAUNCH, "--nproc-per-node", "2", "-m", "squeeze", *words]
    begun = subprocess.Popen(line, cwd=ROOT, env=ENV, stderr=subprocess.PIPE, start_new_session=True)
    told = b""
    while b"squeeze:   0%" not in told:
        told += (read := os.read(begun.stderr.fileno(), 1000))
        assert read, told
    time.sleep(3)
    os.killpg(begun.pid, signal.SIGINT)
    _, more = begun.communicate(timeout=60)
    assert begun.returncode == 128 + signal.SIGINT and b"stopped by SIGINT" in more
    assert (place / ".squeezed.pth.state").exists(), more


# --- an end without errors -------------------------------------------------------------------------------------------


def test_only_rank_0_prints(place):
    """Rank 1 may have done all of the work."""
    done = launch(place, "recover", 2, batch_size=4)
    assert done.returncode == 0 and "error" not in done.stderr and "Warning" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines and len(set(lines)) == len(lines) and all(line.startswith("recover: ") for line in lines)


def test_an_interrupt_is_one_line_that_says_how_to_resume(place):
    """As Ctrl-C at a terminal, which goes to all processes."""
    words = place.command("squeeze", epochs=400, save_every=0)
    line = [*LAUNCH, "--nproc-per-node", "2", "-m", "squeeze", *words]
    launcher = subprocess.Popen(line, cwd=ROOT, text=True, env=ENV, stderr=subprocess.PIPE, start_new_session=True)
    until = time.monotonic() + 120
    while not (place / ".squeezed.pth.state").exists():
        assert time.monotonic() < until and launcher.poll() is None
        time.sleep(0.02)
    assert len(ranks_of(launcher)) == 2
    os.killpg(launcher.pid, signal.SIGINT)
    _, told = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGINT and "Traceback" not in told
    [said] = [line for line in told.splitlines() if line.startswith("stopped by")]
    assert said.startswith("stopped by SIGINT") and "python -m utils.run.launch --standalone" in said
    assert "squeeze --train-dir" in said and "error" not in told
    assert (place / ".squeezed.pth.state").exists() and not (place / "squeezed.pth").exists()
