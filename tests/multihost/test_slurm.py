"""docs/tinyexp.sbatch with a scontrol and an srun of one line: SLURM runs the script once, and srun on each machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from faults import summary, until
from hosts import Hosts

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "tinyexp.sbatch"
SMALL = ("train.epochs=1", "train.limit_batches=4", "hw=cpu", "hw.timeout=20")


def slurm(folder: Path) -> dict[str, str]:
    """The environment of a job of two machines; what scontrol is told to requeue is kept in a file."""
    programs = folder / "bin"
    programs.mkdir()
    scripts = {
        "scontrol": f'[ "$1" = requeue ] && echo "$2" > {folder}/requeued || printf "node0\\nnode1\\n"',
        "srun": 'exec "$@"',
        "python": f'exec {sys.executable} "$@"',
    }
    for name, line in scripts.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_NNODES": "2",
    }


def test_two_machines(hosts: Hosts, tmp_path: Path) -> None:
    environment = slurm(tmp_path)
    started = [
        hosts.start(n, ["bash", str(SCRIPT), *SMALL], env={**environment, "SLURM_NODEID": str(n)}) for n in (0, 1)
    ]
    for process in started:
        assert process.wait(60) == 0, process.output()
    assert summary(hosts.folder(0) / "outputs/slurm-4242")["status"] == "finished"
    assert not (hosts.folder(1) / "outputs").exists()
    assert not (tmp_path / "requeued").exists()


def test_sigterm_saves_and_requeues(hosts: Hosts, tmp_path: Path) -> None:
    environment = slurm(tmp_path)
    words = ("train.epochs=10000", "ckpt.every_minutes=0", "hw=cpu")
    started = [
        hosts.start(n, ["bash", str(SCRIPT), *words], env={**environment, "SLURM_NODEID": str(n)}) for n in (0, 1)
    ]
    run = hosts.folder(0) / "outputs/slurm-4242"
    until((run / "checkpoints/prev.pt").exists, 60)
    for n in (0, 1):
        for pid in hosts.pids(n):
            if f"{pid}" != f"{started[n].pid}":  # as --signal does: to the steps and not to the script
                os.kill(pid, signal.SIGTERM)
    for process in started:
        assert process.wait(60) == 75, process.output()
    assert summary(run)["status"] == "interrupted"
    assert (tmp_path / "requeued").read_text() == "4242\n"
    assert hosts.until_gone(0, 5) == hosts.until_gone(1, 5) == []
