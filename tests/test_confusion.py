"""confusion.json: what best.pt was scored by, whatever happened to the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from faults import SMALL, Fault, disk_full, kill9, run
from helpers import rows, train

from tinyexp.saved import SavedRun


def content(directory: Path) -> bytes:
    return (directory / "confusion.json").read_bytes()


def check(directory: Path) -> None:
    """Its trace is the top1 of the epoch that summary.json calls the best, and its sum all of val."""
    found = SavedRun(directory).confusion
    assert found is not None
    best = json.loads((directory / "summary.json").read_text())["best"]
    assert found.epoch == best["epoch"]
    (logged,) = (row["top1"] for row in rows(directory, "val") if row["epoch"] == found.epoch)
    total = sum(count for _, _, count in found.counts)
    assert sum(count for label, said, count in found.counts if label == said) / total == logged == best["top1"]


@pytest.mark.parametrize("monitor", ["val/top1", "val/loss"])
def test_it_is_of_the_best_epoch(tmp_path: Path, monitor: str) -> None:
    directory = train(
        tmp_path / "run", "train.epochs=3", "train.limit_batches=4", f"ckpt.monitor={monitor}", "optim.lr=0.05"
    )
    check(directory)
    found = SavedRun(directory).confusion
    assert found is not None
    assert found.classes == [str(i) for i in range(10)]
    assert sum(count for _, _, count in found.counts) == 360, "all of val"


@pytest.mark.parametrize(
    ("where", "nth"), [(r"/confusion\.json$", 1), (r"/best\.pt$", 1), (r"/confusion\.json$", 2)], ids=str
)
def test_cut_and_resumed_it_is_the_same(tmp_path: Path, uncut: Path, where: str, nth: int) -> None:
    """Killed when the matrix is there and best.pt is not, and the other way round."""
    assert run(tmp_path, *SMALL, faults=[Fault("os.replace", kill9, where, nth, after=True)]).code == -9
    assert run(tmp_path, "resume=run").code == 0
    assert content(tmp_path / "run") == content(uncut)
    check(tmp_path / "run")


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path: Path, uncut: Path) -> None:
    ended = run(tmp_path, *SMALL, faults=[Fault("os.replace", disk_full, r"/confusion\.json$", 1, 2)])
    assert ended.code == 0
    assert ended.output.count("confusion.json in run can no longer be written") == 1
    assert rows(tmp_path / "run", "val")[-1]["top1"] == rows(uncut, "val")[-1]["top1"]


def test_the_matrix_of_a_later_best_is_not_this_runs(tmp_path: Path) -> None:
    """Who goes back to an older checkpoint has no best yet that is later."""
    assert run(tmp_path, *SMALL, "ckpt.keep=2").code == 0
    check(tmp_path / "run")
    assert SavedRun(tmp_path / "run").confusion is not None
    ended = run(tmp_path, "resume=run/checkpoints/epoch-0001.pt", "train.epochs=1")
    assert ended.code == 0, ended.output
    assert not (tmp_path / "run" / "confusion.json").exists()


def test_the_matrix_of_another_epoch_is_none(tmp_path: Path) -> None:
    """As a crash between the two files, and a run that then went back, may leave it."""
    assert run(tmp_path, *SMALL).code == 0
    path = tmp_path / "run" / "confusion.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "epoch": found["epoch"] + 1}))
    assert SavedRun(tmp_path / "run").confusion is None
