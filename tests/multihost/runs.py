"""Runs on the machines of hosts.py: their words, how they are disturbed, and what must be the same in the end."""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import metrics, state, until
from faults import run as run_alone
from helpers import LEAN
from hosts import Hosts, Process

STEPS = 30  # an epoch
EPOCHS = 2
WORDS = (
    *LEAN,
    "run.dir=run",
    "model._target_=paced.Net",
    "model.dropout=0.3",
    "dataset.augment.crop=pad",
    f"train.epochs={EPOCHS}",
    f"train.limit_batches={STEPS}",
    "train.batch_size=32",
    "train.ema=0.9",
    "log.every=7",
    "ckpt.every_minutes=0.01",
)
SECONDS_A_STEP = "0.06"  # so that there is time for a fault
BOUND = 15  # seconds over hw.timeout, after which nothing may be left
MODEL = """
import os, signal, sys, time
from pathlib import Path
import torch
from tinyexp import seeds
from tinyexp.models.lenet import LeNet5

def fail():
    raise ValueError("I do not like this batch")

ACTIONS = {
    "raise": fail,
    "exit": lambda: sys.exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(600),
}

def faults():
    for text in filter(None, os.environ.get("FAULTS", "").split(",")):
        epoch, step, rank, action = text.split()
        yield seeds.key(0, int(epoch), int(step), int(rank)), action  # what this micro-batch's dropout is seeded by

class Net(LeNet5):
    def forward(self, images):
        if self.training:
            Path("begun").touch()
            time.sleep(float(os.environ.get("PACE", "0")))
            for key, action in faults():
                done = Path(f"done-{key}")
                if torch.initial_seed() % 2**64 == key and (action == "raise" or not done.exists()):
                    done.touch()
                    ACTIONS[action]()
        return super().forward(images)
"""


def write_model(folder: Path) -> None:
    (folder / "paced.py").write_text(MODEL)


def oracle(folder: Path, *words: str) -> Path:
    """The directory of a run that nothing disturbs: one process with two micro-batches is two ranks, bit for bit."""
    folder.mkdir(exist_ok=True)
    write_model(folder)
    ended = run_alone(folder, *WORDS, "train.accumulate=2", *words)
    assert ended.code == 0, ended.output
    return folder / "run"


def fault(*, epoch: int, step: int, rank: int, action: str) -> str:
    """The rank does this before this step of this epoch, both from 0: `raise` each time, all else once."""
    return f"{epoch} {step} {rank} {action}"


class Pair:
    """The same run on both hosts."""

    def __init__(
        self,
        hosts: Hosts,
        *words: str,
        on_1: Sequence[str] = (),
        faults: Sequence[str] = (),
        torchrun: bool = False,
    ) -> None:
        """`on_1` are words that host 1 alone has."""
        self._hosts, self._words, self._on_1, self._torchrun = hosts, words, on_1, torchrun
        self._env = {"PACE": SECONDS_A_STEP, "FAULTS": ",".join(faults)}
        self.run = hosts.folder(0) / "run"
        self.processes = [self._start(n) for n in (0, 1)]

    def __getitem__(self, n: int) -> Process:
        return self.processes[n]

    def again(self, n: int) -> None:
        """The same command on host n, whose first one has ended."""
        assert not self[n].alive
        self.processes[n] = self._start(n)

    def until_ranks(self) -> None:
        """There is a rank on both."""
        self.until(lambda: all(len(self._hosts.pids(n)) >= 3 for n in (0, 1)))

    def until_saved(self) -> None:
        """A second checkpoint is there, in mid-epoch."""
        self.until((self.run / "checkpoints/prev.pt").exists)

    def until_begun(self) -> None:
        """Both are in their first step."""
        self.until(lambda: all((self._hosts.folder(n) / "begun").exists() for n in (0, 1)))

    def until_fault(self, rank: int) -> None:
        """What was asked for by `fault` has come."""
        self.until(lambda: any(self._hosts.folder(rank).glob("done-*")))

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until(lambda: condition() or not any(each.alive for each in self.processes), seconds)
        assert condition(), self.outputs()

    def said(self, n: int, pattern: str) -> list[str]:
        """What host n's output has of it."""
        return re.findall(pattern, self[n].output())

    def codes(self, timeout: float) -> list[int]:
        """Both exit codes, once nothing at all runs on either host, which must be in so many seconds."""
        end = time.monotonic() + timeout
        for n in (0, 1):
            left = self._hosts.until_gone(n, max(0.1, end - time.monotonic()))
            assert not left, f"on node{n} after {timeout} s: {left}\n{self.outputs()}"
        return [each.wait(5) for each in self.processes]

    def outputs(self) -> str:
        return "\n".join(f"node{each.host}:\n{each.output()}" for each in self.processes)

    def _start(self, n: int) -> Process:
        write_model(self._hosts.folder(n))
        (self._hosts.folder(n) / "begun").unlink(missing_ok=True)
        command = [sys.executable, "-m", "tinyexp"]
        words = [*self._words, *(self._on_1 if n == 1 else ())]
        if self._torchrun:
            launcher = ["torch.distributed.run", "--nnodes=2", f"--node-rank={n}", "--nproc-per-node=1"]
            command[2:2] = [*launcher, "--master-addr=node0", "--master-port=29500", "-m"]
        else:
            words += ["hw.nodes=2", "hw.master=node0", f"hw.node={n}", "hw.join_timeout=60"]
        return self._hosts.start(n, [*command, *words], env=self._env)


def pid_of(hosts: Hosts, n: int, part: str) -> int:
    """Of the run's supervisor, agent or worker on host n."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in hosts.pids(n)}
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in lines}
    agents = [pid for pid, line in lines.items() if {"tinyexp.agent", "torch.distributed.run"} & set(line)]
    kinds = {
        "supervisor": [pid for pid in lines if any(parents[agent] == pid for agent in agents)],
        "agent": agents,
        "worker": [pid for pid in lines if parents[pid] in agents],
    }
    (found,) = kinds[part]
    return found


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """The same weights and the same log, bit for bit."""
    assert tensors(run) == tensors(undisturbed)
    rows, expected = metrics(run), metrics(undisturbed)
    for row, other in zip(rows, expected, strict=True):
        near = 1e-6 if row["phase"] == "val" else 0  # ranks cut val into other batches than one process
        assert row.pop("loss") == pytest.approx(other.pop("loss"), rel=near, abs=0)
        assert row == other


def tensors(run: Path) -> str:
    """SHA-256 over all tensors of last.pt's state, with their names."""
    sha = hashlib.sha256()
    for name, tensor in _walk(state(run)):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _walk(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _walk(each, f"{name}.{key}")
