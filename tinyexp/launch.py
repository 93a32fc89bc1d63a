"""From `hw` to processes: torchrun's words for this machine, or all machines rehearsed on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tinyexp.config import HwConfig
from tinyexp.cores import MACHINES_HERE
from tinyexp.errors import ConfigError, RankLostError
from tinyexp.heartbeat import PARENT, end_with_parent, is_rank
from tinyexp.overrides import word
from tinyexp.signals import answering
from tinyexp.supervisor import Supervisor

PORT = 29500


def is_wanted(hw: HwConfig) -> bool:
    """Is this the process that starts the others? Not under torchrun, whose ranks know what they are."""
    return (hw.procs != 1 or hw.nodes > 1 or hw.max_restarts > 0) and not is_rank()


def launch(hw: HwConfig, words: Sequence[str]) -> int:
    """Run these words of the command line on all ranks of this machine; returns the exit code.

    Raises:
        ConfigError: hw.* do not say which machine this is, or ask for more devices than there are.
    """
    if hw.nodes > 1 and hw.master is None:
        if hw.node is not None:
            raise ConfigError(f"hw.node={hw.node} needs hw.master=HOST[:PORT], where node 0 is reached")
        return _rehearse(hw, words)
    if hw.nodes > 1 and hw.node is None:
        lines = [f"hw.node={node}" for node in range(hw.nodes)]
        raise ConfigError(
            f"hw.node must say which machine this is: {lines[0]} on {hw.master}, {' or '.join(lines[1:])} elsewhere, "
            "all other words the same"
        )
    if MACHINES_HERE in os.environ:
        end_with_parent()
    procs = _processes(hw)
    host, port = address(hw.master)

    def launcher() -> list[str]:
        return [
            f"--nnodes={hw.nodes}",
            f"--nproc-per-node={procs}",
            f"--node-rank={hw.node or 0}",
            f"--master-addr={host}",
            f"--master-port={port or free_port()}",
            "--max-restarts=0",
            f"--rdzv-conf=timeout={hw.join_timeout:.0f}",
        ]

    return Supervisor(launcher, words, timeout=hw.timeout, max_restarts=hw.max_restarts).run()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def address(master: str | None) -> tuple[str, int | None]:
    """hw.master's host and port; for a machine that is alone, any port.

    Raises:
        ConfigError: the host is not known.
    """
    if master is None:
        return "127.0.0.1", None
    host, port = parse_address(master)
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ConfigError(f"hw.master={master}: this machine knows no host {host} ({error.strerror})") from error
    return host, port


def parse_address(master: str) -> tuple[str, int]:
    host, _, port = master.rpartition(":")
    return (host, int(port)) if host else (master, PORT)


def _processes(hw: HwConfig) -> int:
    """Raises ConfigError for more ranks than CUDA devices."""
    if isinstance(hw.procs, int):
        return hw.procs
    import torch  # the rest of this process does without

    return max(1, torch.cuda.device_count())


def _rehearse(hw: HwConfig, words: Sequence[str]) -> int:
    """Each machine is a process of its own on this one, with its share of the cores."""
    master = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, MACHINES_HERE: str(hw.nodes), PARENT: str(os.getpid())}
    machines: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int) -> None:
        for machine in machines:
            machine.send_signal(number)

    with answering(pass_on):
        try:
            for node in range(hw.nodes):
                command = [sys.executable, "-m", "tinyexp", *words, word("hw.master", master), f"hw.node={node}"]
                machines.append(subprocess.Popen(command, env=environment, start_new_session=True))
            codes = [machine.wait() for machine in machines]
        finally:
            for machine in machines:
                machine.kill()
                machine.wait()
    return next((code if code > 0 else RankLostError.exit_code for code in codes if code), 0)
