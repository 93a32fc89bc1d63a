"""What each of several jobs at a time gets of a machine: its share of the cores, and a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tinyexp.config import HwConfig
from tinyexp.cores import available_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Slot:
    """One of the places for a job."""

    threads: int | None = None  # of each of its processes; None: as the job itself says
    device: str | None = None  # which of CUDA's it sees; None: all

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.device is None else {_VISIBLE: self.device}


def divide(hw: HwConfig, jobs: int) -> list[Slot]:
    """A place for each of so many jobs. What hw.threads says holds, and a job of several processes sees all GPUs."""
    procs = hw.procs if isinstance(hw.procs, int) else 1
    ranks = jobs * procs * hw.nodes
    threads = max(1, available_cores() // ranks) if jobs > 1 and hw.threads is None else None
    devices = _devices() if jobs > 1 and hw.device in ("auto", "cuda") and hw.procs == hw.nodes == 1 else []
    return [Slot(threads, devices[number % len(devices)] if devices else None) for number in range(jobs)]


def _devices() -> list[str]:
    import torch

    seen = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return seen or [str(number) for number in range(torch.cuda.device_count())]
