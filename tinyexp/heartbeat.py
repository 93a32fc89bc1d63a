"""A rank's sign of life in a file that its supervisor reads: pid, beats, last step; and how the process ended.

Standard library only. Without a supervisor all of it goes nowhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyexp.errors import RankLostError
from tinyexp.files import write_json

FOLDER = "TINYEXP_HEARTBEATS"  # the environment variable in which a supervisor names its folder
CPP_LOG = "TORCH_CPP_LOG_LEVEL"  # torch's: below ERROR, a lost connection is twenty lines of C++
PARENT = "TINYEXP_PARENT"  # and that with the number of a process whose children end with it
SWEEP = "TINYEXP_SWEEP"  # and that with the number of the sweep that a run is a job of
_LAYOUT = struct.Struct("<qqq")  # pid, beats, step
_STEP = struct.Struct("<q")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Heartbeat:
    """A mapped file, so that the last step stands there even after a SIGKILL, and a step costs no system call."""

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self._map = mmap.mmap(-1, _LAYOUT.size)
        else:
            with path.open("w+b") as file:
                file.write(bytes(_LAYOUT.size))  # a sparse file on a full disk would end the process by SIGBUS
                file.flush()
                self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._beats = 0
        self.step = 0
        self.beat()

    @staticmethod
    def of_rank(rank: int) -> Heartbeat:
        folder = os.environ.get(FOLDER)
        with contextlib.suppress(OSError):  # no room for 24 bytes: the run goes on unwatched
            return Heartbeat(Path(folder, f"rank-{rank}") if folder else None)
        return Heartbeat(None)

    def beat(self) -> None:
        self._beats += 1
        _LAYOUT.pack_into(self._map, 0, os.getpid(), self._beats, self.step)

    def reached(self, step: int) -> None:
        self.step = step
        _STEP.pack_into(self._map, 2 * _STEP.size, step)


@dataclass(frozen=True)
class Sign:
    """What a rank's file says."""

    rank: int
    pid: int
    beats: int
    step: int


def read_signs(folder: Path) -> list[Sign]:
    """Of all ranks on this machine that have begun, in their order."""
    found = []
    for path in folder.glob("rank-*[0-9]"):
        content = path.read_bytes()
        if len(content) == _LAYOUT.size and any(content):
            found.append(Sign(int(path.name.removeprefix("rank-")), *_LAYOUT.unpack(content)))
    return sorted(found, key=lambda sign: sign.rank)


def report(name: str, facts: dict[str, Any]) -> None:
    """Tell the supervisor, where there is one, under this name: once more replaces what was told."""
    if folder := os.environ.get(FOLDER):
        with contextlib.suppress(Exception):  # on a full disk the process ends as it would
            write_json(Path(folder, f"{name}.json"), facts)


def read_report(folder: Path, name: str) -> dict[str, Any]:
    """What was told under this name; {} where nothing was."""
    try:
        told = json.loads((folder / f"{name}.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def read_reports(folder: Path) -> dict[int, dict[str, Any]]:
    """What ranks told, by rank: one that failed early has no other sign."""
    names = [path.stem for path in folder.glob("rank-*[0-9].json")]
    return {int(name.removeprefix("rank-")): read_report(folder, name) for name in sorted(names)}


def under_torchrun() -> bool:
    """Is this a process that torchrun started?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_passed_on_to() -> bool:
    """Do a user's signals come to this process by another of ours? One may then come twice.

    The system tells a sweep's job of its parent's end once for each thread of that.
    """
    return under_torchrun() or SWEEP in os.environ


def is_rank() -> bool:
    """Is this one of the processes of a run, as torchrun's environment, or another launcher's, says?"""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def local_rank() -> int:
    """This process's number among the run's on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank_tag() -> str:
    """Who speaks: empty for rank 0, and for a process that is alone."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" [rank {rank} on {socket.gethostname()}]"


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends, however that ends; at once if it has."""
    _follow(os.environ.get(PARENT, str(os.getppid())), signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())  # what this process starts from now on may do the same


def end_with_sweep() -> None:
    """As a sweep's job: from now on this process saves and ends when the sweep's own has ended."""
    if sweep := os.environ.get(SWEEP):
        os.environ[SWEEP] = ""  # what this process starts has itself for a parent
        _follow(sweep, signal.SIGTERM)


def _follow(parent: str, number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    else:
        threading.Thread(target=_watch_parent, args=(os.getppid(), number), daemon=True).start()
    if parent != str(os.getppid()):
        os._exit(RankLostError.exit_code)


def _watch_parent(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), number)
