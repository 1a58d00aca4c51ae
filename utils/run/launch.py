"""python -m utils.run.launch TORCHRUN_ARGUMENTS: torchrun, which ends with one line of error.

Takes and does what torchrun does. Where a rank failed, the line is that of the first one to fail, by the error file
that it wrote (torch.distributed.elastic.multiprocessing.errors), and no traceback of the launcher follows.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from utils.run.errors import UserError


def main() -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as failed:
        # A rank without an error file ended because another one did.
        rank, failure = min(
            failed.failures.items(), key=lambda item: (not isinstance(item[1].message, dict), item[1].timestamp)
        )
        sys.stderr.write(f"\nerror: {_message(rank, failure)}\n")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


def _message(rank: int, failure: ProcessFailure) -> str:
    if isinstance(failure.message, dict):
        return " ".join(failure.message["message"].removeprefix(f"{UserError.__name__}: ").split())
    if failure.exitcode < 0:
        return (
            f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}; finished work is on disk, and the "
            "same command resumes"
        )
    return f"rank {rank} ended with exit code {failure.exitcode}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, but without a warning
    # A store of its own for each attempt. In the shared one restarted ranks find the addresses of those that died
    # (github.com/pytorch/pytorch/issues/135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # no C++ frames of ranks that wait for one that has ended
    main()
