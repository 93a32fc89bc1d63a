"""How many of the machine's cores this process may use."""

from __future__ import annotations

import os

MACHINES_HERE = "TINYEXP_MACHINES_HERE"  # the environment variable with how many are rehearsed on this one


def available_cores() -> int:
    """Those that the system lets it run on (taskset, a container's cpuset), where it tells; else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks_here() -> int:
    """How many processes of this run share the machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * int(os.environ.get(MACHINES_HERE, "1"))


def cores_of_rank() -> int:
    """This rank's share, at least one."""
    return max(1, available_cores() // ranks_here())
