"""python -m utils.run.launch TORCHRUN_ARGUMENTS: torchrun, which ends with one line of error.

Takes and does what torchrun does. Where a rank failed, the line is that of the first one to fail, by the error file
that it wrote (torch.distributed.elastic.multiprocessing.errors), and no traceback of the launcher follows.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import math
import os
import shlex
import signal
import sys

# No C++ frames of what waits for one that has ended, or is not there. torch reads it when it is imported.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from utils.run import boundary
from utils.run.cpus import job_cpus
from utils.run.distributed import LAUNCHER, ConnectionLost
from utils.run.errors import UserError, first_line
from utils.run.signals import grace

USER_ERROR, CONNECTION_LOST = (f"{kind.__name__}: " for kind in (UserError, ConnectionLost))  # as in error files
SAVING = 60  # seconds that ranks have after the grace of a signal, to save, before they are killed
WAITING = 12 * 3600  # seconds that a machine whose ranks are done waits for the ranks of the others
RESUMES = "finished work is on disk, and the same command resumes"


def main() -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    wait_for_other_machines()
    args = run.parse_args(sys.argv[1:])
    try:
        run.run(args)
    except RendezvousError as error:
        where = (
            f"{args.rdzv_endpoint or args.master_addr} (--rdzv-endpoint, MASTER_ADDR in scripts), or lost one another"
        )
        reason = first_line(error.__cause__ or error)
        sys.stderr.write(f"\nerror: the {args.nnodes} machines did not meet at {where}: {reason}; {RESUMES}\n")
        sys.exit(1)
    except ChildFailedError as failed:
        rank, failure = min(failed.failures.items(), key=lambda item: _order(item[1]))
        sys.stderr.write(f"\nerror: {_message(rank, failure)}\n")
        sys.exit(2 if _error(failure).startswith(USER_ERROR) else max(failure.exitcode, 1))
    except SignalException as stopped:
        command = shlex.join(["python", "-m", "utils.run.launch", *sys.argv[1:]])
        sys.stderr.write(f"\nstopped by {signal.Signals(stopped.sigval).name}; {RESUMES}: {command}\n")
        sys.exit(128 + stopped.sigval)


def wait_for_other_machines(seconds: float = WAITING) -> None:
    """Let a machine whose ranks are done wait so long for the others.

    torchrun has no flag for it, and waits 300 seconds: then its machine leaves, and where that is the one at which all
    meet, the ranks of the others are ended. Ranks that share work, or of which one works alone, end far apart.
    """
    made = LocalElasticAgent.__init__
    LocalElasticAgent.__init__ = functools.partialmethod(made, exit_barrier_timeout=seconds)


def threads(words: list[str]) -> int:
    """A process's share of the CPUs that the job may use."""
    try:
        processes = run.determine_local_world_size(run.parse_args(words).nproc_per_node)
    except ValueError:  # which torchrun says itself
        return 1
    return max(1, job_cpus() // max(1, processes))


def _order(failure: ProcessFailure) -> tuple:
    """Sorts the failure that explains the others first: an error, else a kill, else the first end.

    The launcher looks at the ranks now and then, and those that notice a kill may have ended by then.
    """
    error = _error(failure)
    killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # by which the launcher ends the others
    return not error or _follows(error), not killed, failure.timestamp


def _error(failure: ProcessFailure) -> str:
    """`Class: message` of the exception in a rank's error file; empty without one."""
    return " ".join(failure.message["message"].split()) if isinstance(failure.message, dict) else ""


def _follows(error: str) -> bool:
    return error.startswith(CONNECTION_LOST)


def _message(rank: int, failure: ProcessFailure) -> str:
    if error := _error(failure):
        if _follows(error):
            return f"rank {rank}: {error.removeprefix(CONNECTION_LOST)}"
        return error.removeprefix(USER_ERROR)
    number = -failure.exitcode if failure.exitcode < 0 else failure.exitcode - 128
    if number in signal.valid_signals():
        return f"rank {rank} was ended by {signal.Signals(number).name}; {RESUMES}"
    return f"rank {rank} ended with exit code {failure.exitcode}"


def prepare() -> None:
    """Set what the launcher and its ranks read in the environment. Raises UserError for what no one can read."""
    os.environ[LAUNCHER] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(sys.argv[1:])))  # torchrun would take 1, and warn of it
    # A store of its own for each attempt. In the shared one restarted ranks find the addresses of those that died
    # (github.com/pytorch/pytorch/issues/135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(math.ceil(grace()) + SAVING))  # torchrun's is 30


if __name__ == "__main__":
    atexit.register(gc.freeze)  # as in utils.run.entry
    if code := boundary.run(prepare):
        sys.exit(code)
    main()
