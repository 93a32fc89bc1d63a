"""Two processes under torchrun are one that accumulates two micro-batches, to the bit, through a cut as well."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import LEAN, rows, train

from tinyexp.checkpoint import load

pytestmark = pytest.mark.slow

WORDS = (
    *LEAN[:2],  # what is said is part of what is tested
    "model.dropout=0.3",
    "dataset.augment.crop=pad",
    "train.ema=0.9",
    "train.clip_norm=1",
    "train.epochs=2",
    "train.batch_size=300",  # 300, 300, 300, 300 and 237 samples, cut into 119 and 118
    "log.every=2",
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "tinyexp"]
    return subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True, timeout=100, check=False)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", *WORDS, "train.accumulate=2")

    root = tmp_path / "together"
    cut = torchrun(*WORDS, f"run.root={root}", "run.name=pair", "train.max_time=0.001")
    (run,) = root.iterdir()  # one directory, not one a rank
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["exit_code"], summary["steps"]) == ("interrupted", 75, 1)
    assert cut.stderr.count("interrupted by train.max_time=0.001 s at step 1, saved") == 1

    resumed = torchrun(f"resume={run}", "train.max_time=null")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("best val top1") == 1  # rank 0 alone speaks
    assert resumed.stdout.splitlines()[-1].endswith(f"in {run}")
    assert "2 ranks of 1 threads" in resumed.stdout

    states = [load(each / "checkpoints" / "last.pt")["state"] for each in (alone, run)]
    for weights in ("model", "ema"):
        assert states[0][weights].keys() == states[1][weights].keys()
        assert all(torch.equal(tensor, states[1][weights][name]) for name, tensor in states[0][weights].items())
    for phase in ("train", "train_epoch"):
        logs = [
            [(row["step"], row["loss"], row["top1"], row["top5"]) for row in rows(each, phase)] for each in (alone, run)
        ]
        assert logs[0] == logs[1]
        assert logs[0]
    for mine, theirs in zip(rows(alone, "val"), rows(run, "val"), strict=True):
        assert (mine["epoch"], mine["top1"], mine["top5"]) == (theirs["epoch"], theirs["top1"], theirs["top5"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)  # ranks cut val into other batches
