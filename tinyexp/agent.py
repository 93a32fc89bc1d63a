"""torchrun's launcher on one machine, `python -m tinyexp.agent` with torchrun's words; its supervisor speaks for it."""

from __future__ import annotations

import logging
import os
import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from tinyexp.heartbeat import CPP_LOG, end_with_parent, report

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # passed on to the ranks


def main() -> int:
    """Exit code 1 where a rank did not end well; how each ended is reported."""
    end_with_parent()
    os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", _SIGNALS)
    os.environ[CPP_LOG] = os.environ.get(CPP_LOG, "").replace("FATAL", "ERROR")  # of the ranks
    logging.disable()
    try:
        run(parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        report("agent", {"codes": {str(rank): failure.exitcode for rank, failure in error.failures.items()}})
        return 1
    except DistError as error:  # the rendezvous
        report("agent", {"error": str(error).strip().split("\n")[0]})
        return 1
    except SignalException:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
