"""When a rank, a machine or the link is lost, or ranks disagree, all end in time and say why; no fault is a hang."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import half_written, metrics, summary
from faults import run as run_alone
from helpers import write_image
from hosts import Hosts
from runs import BOUND, MODEL, STEPS, Pair, assert_as_undisturbed, fault, oracle, pid_of
from runs import WORDS as OF_RUN

pytestmark = pytest.mark.slow

TIMEOUT = 6
WORDS = (*OF_RUN, f"hw.timeout={TIMEOUT}", "hw.max_restarts=0", "resume=auto")
IN_TIME = TIMEOUT + BOUND
AT = STEPS + 9  # steps that are done when a fault of `at` comes
TRUST = "trust=[paced.*]"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle(tmp_path_factory.mktemp("undisturbed"))


def at(rank: int, action: str) -> str:
    return fault(epoch=1, step=9, rank=rank, action=action)


LOST = "was lost at step {step}: "
STANDS = LOST + "alive, but it came to no collective"
TOLD = "ended at step {step}: ValueError: I do not like this batch"


@pytest.mark.parametrize(
    ("action", "rank", "code", "told"),
    [
        ("kill", 0, 6, LOST),
        ("stop", 1, 6, LOST),
        ("sleep", 1, 6, STANDS),
        ("raise", 1, 1, TOLD),
        ("exit", 1, 1, "ended at step {step}: SystemExit"),
    ],
    ids=["kill", "stop", "sleep", "raise", "exit"],
)
def test_a_worker(hosts: Hosts, action: str, rank: int, code: int, told: str) -> None:
    pair = Pair(hosts, *WORDS, faults=[at(rank, action)])
    pair.until_fault(rank)
    assert pair.codes(IN_TIME) == [code, code], pair.outputs()
    assert_said_once(pair, 1 - rank, f"rank {rank} on node{rank} {told.format(step=AT)}")


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("kill", LOST),
        ("stop", LOST),
        ("raise", TOLD),
    ],
    ids=["kill", "stop", "raise"],
)
def test_a_worker_under_torchrun(hosts: Hosts, action: str, told: str) -> None:
    pair = Pair(hosts, *WORDS, faults=[at(1, action)], torchrun=True)
    pair.until_fault(1)
    if action == "stop":  # nobody looks after node 1
        assert not hosts.until_gone(0, IN_TIME), pair.outputs()
        hosts.kill(1)
    assert pair.codes(IN_TIME)[0] == 1, pair.outputs()
    assert_said_once(pair, 0, f"rank 1 on node1 {told.format(step=AT)}")


def assert_said_once(pair: Pair, n: int, pattern: str) -> None:
    assert len(pair.said(n, pattern)) == 1, pair.outputs()


def supervisor(hosts: Hosts, n: int) -> None:
    os.kill(pid_of(hosts, n, "supervisor"), signal.SIGKILL)


def agent(hosts: Hosts, n: int) -> None:
    os.kill(pid_of(hosts, n, "agent"), signal.SIGKILL)


def machine(hosts: Hosts, n: int) -> None:
    hosts.kill(n)


def link(hosts: Hosts, n: int) -> None:
    hosts.disconnect(n)


@pytest.mark.parametrize(
    ("lost", "n", "code"),
    [
        (supervisor, 1, -9),
        (agent, 0, 6),
        (machine, 0, -9),
        (machine, 1, -9),
        (link, 1, 6),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_more_than_a_worker(hosts: Hosts, lost: Callable[[Hosts, int], None], n: int, code: int) -> None:
    pair = Pair(hosts, *WORDS)
    pair.until_saved()
    lost(hosts, n)
    codes = pair.codes(IN_TIME)
    assert (codes[n], codes[1 - n]) == (code, 6), pair.outputs()
    assert_said_once(pair, 1 - n, rf"rank {n} on node{n} was lost at step \d+: ")


def test_torchruns_own_agent(hosts: Hosts) -> None:
    pair = Pair(hosts, *WORDS, torchrun=True)
    pair.until_saved()
    agent(hosts, 0)
    assert pair.codes(IN_TIME)[1] == 1, pair.outputs()
    assert_said_once(pair, 1, r"rank 0 on node0 was lost at step \d+: ")


def images(hosts: Hosts, n: int, *, more: int = 0) -> None:
    for phase, count in (("train", 8 + more), ("val", 4)):
        for label in ("cat", "dog"):
            for i in range(count):
                write_image(hosts.folder(n) / "data" / phase / label / f"{i}.png", (20 * i, 9, 90))


def disagreement(hosts: Hosts, *words: str, other: str | None = None) -> list[str]:
    """What both say last, when node 1 has one word more."""
    pair = Pair(hosts, *WORDS, *words, on_1=(other,) if other else ())
    pair.until_ranks()
    assert pair.codes(IN_TIME) == [2, 2], pair.outputs()  # 10 s where nothing else runs
    assert not pair.run.exists()
    for process in pair.processes:
        assert process.output().count("\n") == 1, process.output()
    return [process.output().partition(": ")[2] for process in pair.processes]


def test_another_word_on_one_machine(hosts: Hosts) -> None:
    first, second = disagreement(hosts, other="optim.lr=0.5")
    assert first == second
    assert first.startswith(
        "optim.lr is 0.003 on rank 0 on node0 and 0.5 on rank 1 on node1: give each machine the same"
    )


IMAGES = ("dataset=imagefolder", "dataset.root=data", "dataset.image_size=28", "dataset.workers=0")


def test_another_data_set_on_one_machine(hosts: Hosts) -> None:
    images(hosts, 0)
    images(hosts, 1, more=1)
    first, second = disagreement(hosts, *IMAGES)
    assert first == second
    assert first.startswith("the data is ")
    assert " on rank 0 on node0 and " in first
    assert first.endswith(" on rank 1 on node1: make them the same on each machine\n")


def test_no_data_set_on_one_machine(hosts: Hosts) -> None:
    images(hosts, 0)
    first, second = disagreement(hosts, *IMAGES)
    assert "dataset.root=data" in second
    assert first.startswith("rank 1 on node1 ended at step 0: ")
    assert first.endswith(second)


def everyone(hosts: Hosts, n: int) -> None:
    for pid in hosts.pids(n):
        os.kill(pid, signal.SIGTERM)


def test_signals_and_a_resume_where_there_is_no_directory(hosts: Hosts, undisturbed: Path) -> None:
    for part in ("worker", "agent", "supervisor", "everyone"):
        pair = Pair(hosts, *WORDS)
        pair.until_begun()
        for pid in hosts.pids(1) if part == "everyone" else [pid_of(hosts, 1, part)]:
            os.kill(pid, signal.SIGTERM)
        assert pair.codes(IN_TIME) == [75, 75], f"SIGTERM to {part}\n{pair.outputs()}"
        assert {"status": "interrupted", "exit_code": 75}.items() <= summary(pair.run).items()
        assert_said_once(pair, 0, r"interrupted by .* at step \d+, saved: resume=run goes on")
        assert not half_written(pair.run)

    pair = Pair(hosts, "resume=run", TRUST)
    assert pair.codes(90) == [0, 0], pair.outputs()
    assert_as_undisturbed(pair.run, undisturbed)
    assert not (hosts.folder(1) / "run").exists()


def test_saved_by_two_ranks_and_resumed_by_another_number(hosts: Hosts, tmp_path: Path) -> None:
    whole = oracle(tmp_path / "whole", "model.dropout=0")  # whose draws follow from how a batch is divided
    folder = hosts.folder(0)
    (folder / "paced.py").write_text(MODEL)
    command = [sys.executable, "-m", "tinyexp"]
    words = [*OF_RUN, "model.dropout=0", "hw.procs=2", "train.max_time=0.5"]
    saved = hosts.start(0, [*command, *words], env={"PACE": "0.05"})
    assert saved.wait() == 75, saved.output()
    assert 0 < summary(folder / "run")["steps"] < STEPS
    shutil.copytree(folder / "run", folder / "again")

    alone = run_alone(folder, "resume=run", TRUST, "train.max_time=null", "hw.procs=1")
    assert alone.code == 0, alone.output
    three = hosts.start(0, [*command, "resume=again", TRUST, "train.max_time=null", "hw.procs=3"])
    assert three.wait() == 0, three.output()
    for run in (folder / "run", folder / "again"):
        for row, expected in zip(val_rows(run), val_rows(whole), strict=True):
            assert row["step"] == expected["step"]
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
            assert row["top1"] == pytest.approx(expected["top1"], abs=1.01 / 360)  # one of the val images


def val_rows(run: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(run) if row["phase"] == "val"]
