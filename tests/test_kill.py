"""SIGKILL at any instant costs no more than what came after the last checkpoint, and never a checkpoint."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from faults import (
    FOREVER,
    LAST,
    PREV,
    SMALL,
    STEPS,
    Fault,
    Installable,
    Torn,
    digest,
    disk_broken,
    half_written,
    kill9,
    metrics,
    run,
    start,
    state,
    until,
)

KEEP = (*SMALL, "train.epochs=4", "train.limit_batches=3", "ckpt.keep=2")
ASIDE = r"\.last\.pt\.tmp-"
POINTS = {
    "before the run is described": Fault("os.replace", kill9, r"/config\.yaml$"),
    "before the write": Fault("io.open", kill9, ASIDE, nth=5),
    "amid the write": Torn(ASIDE, kill9, nth=5),
    "amid the first write": Torn(ASIDE, kill9),
    "before fsync": Fault("os.fsync", kill9, ASIDE, nth=5),
    "before last is kept as prev": Fault("os.replace", kill9, PREV, nth=5),
    "between prev and last": Fault("os.replace", kill9, LAST, nth=5),
    "before the folder's fsync": Fault("os.fsync", kill9, "/checkpoints$", nth=9),
    "before best": Fault("os.replace", kill9, r"/best\.pt$"),
    "after best": Fault("os.replace", kill9, r"/best\.pt$", after=True),
    "before an epoch's": Fault("os.replace", kill9, r"/epoch-0002\.pt$"),
    "after an epoch's": Fault("os.replace", kill9, r"/epoch-0002\.pt$", after=True),
    "before pruning": Fault("os.unlink", kill9, r"/epoch-0001\.pt$"),
    "amid pruning, the last": Fault("os.unlink", kill9, r"/epoch-0002\.pt$"),
    "after pruning": Fault("os.unlink", kill9, r"/epoch-0001\.pt$", after=True),
    "before the summary": Fault("os.replace", kill9, r"/summary\.json$", nth=3),
    "before the last summary": Fault("tinyexp.run.Run.finish", kill9),
}


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a KEEP run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("kept")
    assert run(folder, *KEEP).code == 0
    return folder / "run"


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_killed_at(tmp_path: Path, kept: Path, point: Installable) -> None:
    assert run(tmp_path, *KEEP, faults=[point]).code == -9
    saved = {path.name for path in (tmp_path / "run/checkpoints").glob("*.pt")}
    assert saved <= {"best.pt", "epoch-0001.pt"} or latest_step(tmp_path / "run") > 0
    assert run(tmp_path, *KEEP, "resume=auto").code == 0
    assert files(tmp_path / "run") == files(kept)
    for name in ("last", "best", "epoch-0003", "epoch-0004"):
        assert digest(tmp_path / "run", name) == digest(kept, name)
    assert metrics(tmp_path / "run") == metrics(kept)


def test_killed_where_no_file_has_two_names(tmp_path: Path, uncut: Path) -> None:
    """Some file systems have no hard links: there, last.pt is away for an instant, and prev.pt is it."""
    no_links = Fault("os.link", disk_broken, times=FOREVER)
    assert run(tmp_path, *SMALL, faults=[no_links, Fault("os.replace", kill9, LAST, nth=5)]).code == -9
    assert not (tmp_path / "run/checkpoints/last.pt").exists()
    assert latest_step(tmp_path / "run") == 4
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


def test_killed_on_the_way_back_from_a_damaged_checkpoint(tmp_path: Path, uncut: Path) -> None:
    """The damaged last.pt never takes the place of the whole prev.pt."""
    shutil.copytree(uncut, tmp_path / "run")
    os.truncate(tmp_path / "run/checkpoints/last.pt", 1000)
    assert run(tmp_path, "resume=run", faults=[Fault("os.replace", kill9, LAST)]).code == -9
    assert state(tmp_path / "run", "prev")["step"] == 2 * STEPS
    assert run(tmp_path, "resume=run").code == 0
    assert digest(tmp_path / "run") == digest(uncut)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path) -> None:
    words = (*SMALL, "train.epochs=12", "resume=auto")
    assert run(tmp_path, *words, "run.dir=whole").code == 0
    moments, steps, last = random.Random(0), [0], tmp_path / "run/checkpoints/last.pt"
    for number in range(20):
        before = inode(last)
        child = start(tmp_path, *words)
        if number % 2:  # in its start, or in its training
            until(lambda child=child, before=before: inode(last) not in (None, before) or not child.alive)
        time.sleep(moments.uniform(0, 0.2))
        child.kill()
        steps.append(latest_step(tmp_path / "run"))
    assert steps == sorted(steps), "a checkpoint was lost"
    assert len(set(steps)) > 5, "the run is too short to be a test"
    assert run(tmp_path, *words).code == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    assert not half_written(tmp_path / "run")


def latest_step(directory: Path) -> int:
    """Of the newest checkpoint that passes its check; 0 without one."""
    there = [name for name in ("last", "prev") if (directory / "checkpoints" / f"{name}.pt").exists()]
    return max([state(directory, name)["step"] for name in there], default=0)


def files(directory: Path) -> set[str]:
    """But for those of which each start makes one."""
    names = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("tb/", "env-"))}


def inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
