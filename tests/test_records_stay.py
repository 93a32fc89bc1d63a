"""What a resume that fails, a step back in time, a constant that is infinite or a lost terminal must not harm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import begin, train
from torch import nn

from tinyexp.__main__ import main
from tinyexp.checkpoint import Checkpointer, load
from tinyexp.errors import NonFiniteError

RECORDS = ("config.yaml", "env.json", "summary.json", "metrics.jsonl")


def test_a_resume_that_fails_leaves_all_records(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "train.epochs=1")
    before = {name: (run / name).read_bytes() for name in RECORDS}
    assert main([f"resume={run}/checkpoints/best.pt", "train.epochs=3"]) == 2
    assert {name: (run / name).read_bytes() for name in RECORDS} == before


def test_going_back_sets_the_later_best_aside(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "train.epochs=2", "ckpt.keep=2")
    checkpoints = run / "checkpoints"
    later = load(checkpoints / "best.pt")["state"]["step"]
    assert main([f"resume={checkpoints}/epoch-0001.pt", "train.epochs=1"]) == 0
    assert load(checkpoints / "best.later.pt")["state"]["step"] == later
    assert not (checkpoints / "best.pt").exists()


def test_what_was_infinite_before_the_first_step_may_be_saved(tmp_path: Path) -> None:
    content = {"state": {"model": {"mask": torch.tensor([0.0, -torch.inf])}}}
    checkpointer = Checkpointer(tmp_path / "checkpoints", keep=0)
    with pytest.raises(NonFiniteError, match=r"model\.mask"):
        checkpointer.save(content, "last")
    checkpointer.constants = frozenset({"model.mask"})
    checkpointer._proven = True  # it is no whole checkpoint
    checkpointer.save(content, "last")
    checkpointer.close()
    assert (tmp_path / "checkpoints/last.pt").exists()


def test_fp16_that_overflows_at_any_scale_is_told() -> None:
    _, _, state = begin()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    for _ in range(3):
        state.check_scale()
        state.scaler.scale(weight.sum() * torch.inf).backward()
        state.scaler.step(optimizer)
        state.scaler.update()
    with pytest.raises(NonFiniteError, match="fp16"):
        state.check_scale()


@pytest.mark.slow
def test_a_terminal_that_is_gone_does_not_end_the_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tinyexp", "train.epochs=1", "hw.threads=1", "run.dir=run"]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(words, cwd=tmp_path, stdout=full, check=False, timeout=120).returncode == 0
    assert '"finished"' in (tmp_path / "run/summary.json").read_text()
