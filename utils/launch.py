"""python -m utils.launch TORCHRUN_ARGUMENTS: torchrun, whose last word is for people too.

Takes and does what torchrun does. Where a process failed, that process has said why: nothing is added but for one that was
killed, and no traceback of the launcher follows.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            sys.stderr.write(f"\nerror: rank {rank} was ended by {signal.Signals(-failure.exitcode).name}; what is finished or was "
                             "saved is whole, and the same command goes on with it\n")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, but without a warning
    # A store of its own for each attempt. In the shared one restarted ranks find the addresses of those that died
    # (github.com/pytorch/pytorch/issues/135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    main()
