"""A run of one process opens no port: in a network of its own nothing else could."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from faults import until
from hosts import Hosts

pytestmark = pytest.mark.slow

LISTENING = "0A"  # of /proc/net/tcp


def listeners(pid: int) -> list[str]:
    """The local addresses of a process's network on which anybody listens."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    return [line.split()[1] for table in tables for line in table if line.split()[3] == LISTENING]


@pytest.mark.parametrize(("words", "some"), [([], False), (["hw.procs=2"], True)], ids=["one", "two"])
def test_listeners(hosts: Hosts, words: list[str], some: bool) -> None:
    command = [sys.executable, "-m", "tinyexp", "run.dir=run", "train.epochs=10000", "ckpt.every_minutes=0", *words]
    process = hosts.start(0, command)
    until((hosts.folder(0) / "run/checkpoints/prev.pt").exists, 60)
    assert bool(listeners(process.pid)) == some
    hosts.kill(0)
