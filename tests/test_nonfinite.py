"""A loss, gradient or weight that is inf or nan stops the run with exit code 4, and is never written."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faults import SMALL, STEPS, Ended, half_written, metrics, run, state, summary

from tinyexp import seeds
from tinyexp.checkpoint import non_finite

MODELS = """
import os
import torch
from tinyexp.models import LeNet5

class Net(LeNet5):
    "Whole until training step AT (of this process), counted from 1."

    def __init__(self, *, at, rank=0, **arguments):
        super().__init__(**arguments)
        self.at, self.steps, self.here = at, 0, rank == int(os.environ.get("RANK", "0"))

    def forward(self, images):
        self.steps += self.training
        logits = super().forward(images)
        return self.spoil(logits) if self.training and self.here and self.steps == self.at else logits

class NanLoss(Net):
    def spoil(self, logits):
        return logits * torch.nan

class InfLoss(Net):
    def spoil(self, logits):
        return logits + torch.tensor([3e38] + [-3e38] * 9)

class NanGradient(Net):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.conv1.bias.register_hook(lambda gradient: gradient * torch.nan if self.steps == self.at else gradient)

    def spoil(self, logits):
        return logits

class InfWeight(Net):
    def spoil(self, logits):
        with torch.no_grad():
            self.conv1.bias[0].fill_(torch.inf)  # seen by neither the loss nor the gradients of this step
        return logits
"""
BATCH = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "badnets.py").write_text(MODELS)
    return tmp_path


def net(name: str, at: int) -> tuple[str, ...]:
    return (f"model._target_=badnets.{name}", f"+model.at={at}")


def assert_stopped(folder: Path, ended: Ended, step: int) -> None:
    """Exit code 4 in both places, and all that stands on the disk is of finite steps."""
    assert ended.code == 4, ended.output
    directory = folder / "run"
    assert {"status": "failed", "exit_code": 4}.items() <= summary(directory).items()
    for name in (path.stem for path in (directory / "checkpoints").glob("*.pt")):
        assert not non_finite(state(directory, name))
        assert state(directory, name)["step"] < step
    assert all(row["step"] < step for row in metrics(directory))
    assert not half_written(directory)


def samples(step: int) -> str:
    """Of this optimizer step, counted from 1."""
    epoch, place = divmod(step - 1, STEPS)
    return str([int(i) for i in seeds.permutation(0, epoch, size=1437)[place * BATCH : (place + 1) * BATCH]])


@pytest.mark.parametrize(
    ("name", "what"),
    [("NanLoss", "loss is nan"), ("InfLoss", "loss is inf"), ("NanGradient", "gradient's norm is nan")],
)
def test_saved_each_step(folder: Path, name: str, what: str) -> None:
    ended = run(folder, *SMALL, *net(name, at=5))
    assert_stopped(folder, ended, step=5)
    assert f"at step 5 the {what}" in ended.output
    assert f"samples of step 5: {samples(5)}" in (folder / "run/run.log").read_text()
    assert state(folder / "run")["step"] == 4


@pytest.mark.parametrize("name", ["NanLoss", "NanGradient"])
@pytest.mark.parametrize(("every", "at"), [(4, 10), (100, STEPS + 2)], ids=["at a line", "at the epoch's end"])
def test_read_now_and_then(folder: Path, name: str, every: int, at: int) -> None:
    words = ("ckpt.every_minutes=null", f"log.every={every}")
    ended = run(folder, *SMALL, *words, *net(name, at))
    assert_stopped(folder, ended, at)
    assert f"at step {at} the" in ended.output
    assert f"samples of step {at}: {samples(at)}" in (folder / "run/run.log").read_text()
    assert state(folder / "run")["step"] == STEPS


def test_a_weight_alone(folder: Path) -> None:
    ended = run(folder, *SMALL, *net("InfWeight", at=5))
    assert_stopped(folder, ended, step=5)
    assert "conv1.bias holds inf or nan and is not saved" in ended.output


def test_a_huge_learning_rate(folder: Path) -> None:
    ended = run(folder, *SMALL, "optim.lr=1e30", "ckpt.every_minutes=null")
    assert ended.code == 4
    assert "try a lower optim.lr" in ended.output
    assert summary(folder / "run")["exit_code"] == 4
    assert not list((folder / "run/checkpoints").iterdir())


def test_the_run_goes_on_from_before(folder: Path) -> None:
    assert run(folder, *SMALL, *net("NanLoss", at=5)).code == 4
    ended = run(folder, "resume=run", "trust=[badnets.*]")  # in this process the fifth step is another: it comes later
    assert "resumed at step 4" in ended.output
    assert "at step 9 the" in ended.output


@pytest.mark.slow
def test_one_rank_of_two(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    words = [*SMALL, *net("NanLoss", at=5), "+model.rank=1", "log.every=3", "ckpt.every_minutes=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "tinyexp", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert_stopped(folder, Ended(4, ended.stderr), step=5)
    assert ended.returncode == 1, "torchrun's own"
    assert ended.stderr.count("at step 5 the loss is nan") == 1, "one rank says it"
    assert "samples of step 5: " in (folder / "run/run.log").read_text()
