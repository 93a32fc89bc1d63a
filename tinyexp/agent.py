"""torchrun's launcher on one machine, `python -m tinyexp.agent` with torchrun's words; its supervisor speaks for it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from datetime import timedelta

from tinyexp.heartbeat import CPP_LOG, end_with_parent, report

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # passed on to the ranks


def main() -> int:
    """Exit code 1 where a rank did not end well; how each ended is reported."""
    end_with_parent()  # before torch is imported, which takes seconds
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", _SIGNALS)
    os.environ[CPP_LOG] = os.environ.get(CPP_LOG, "").replace("FATAL", "ERROR")  # of the ranks
    logging.disable()
    try:
        arguments = parse_args(sys.argv[1:])
        _wait_for_a_new_store(arguments)
        run(arguments)
    except ChildFailedError as error:
        report("agent", {"codes": {str(rank): failure.exitcode for rank, failure in error.failures.items()}})
        return 1
    except DistError as error:  # the rendezvous
        report("agent", {"error": str(error).strip().split("\n")[0]})
        return 1
    except SignalException:
        return 1
    return 0


def _wait_for_a_new_store(arguments: argparse.Namespace) -> None:
    """Until node 0's store does not know this machine yet: one that does is of the attempt before, or another run's.

    Whoever joins that takes the place of a rank in it.

    Raises:
        DistError: there was no other within the rendezvous' timeout.
    """
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    if arguments.node_rank == 0:
        return
    limit = float(arguments.rdzv_conf.partition("=")[2])
    until = time.monotonic() + limit
    key = f"{arguments.rdzv_id}/torchelastic/role_info/{arguments.node_rank}"
    while (left := until - time.monotonic()) > 0:
        with contextlib.suppress(DistError):  # it is not there yet, or just ends
            store = TCPStore(arguments.master_addr, arguments.master_port, None, False, timedelta(seconds=left), False)
            if not store.check([key]):
                return
        time.sleep(0.5)
    place = f"{arguments.master_addr}:{arguments.master_port}"
    raise DistError(f"in {limit:.0f} s there was no rendezvous at {place}, or that of another run: try another port")


if __name__ == "__main__":
    sys.exit(main())
