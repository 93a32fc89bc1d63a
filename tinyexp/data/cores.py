"""How many of the machine's cores this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Those that the system lets it run on (taskset, a container's cpuset), where it tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_of_rank() -> int:
    """This rank's share, at least one, where torchrun started several on this machine."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
