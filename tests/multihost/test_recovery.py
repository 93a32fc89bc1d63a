"""A run that loses a rank, a machine or the link goes on by itself, and ends with the weights of one that did not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import half_written, summary
from hosts import Hosts
from runs import STEPS, Pair, assert_as_undisturbed, fault, oracle
from runs import WORDS as OF_RUN

pytestmark = pytest.mark.slow

WORDS = (*OF_RUN, "resume=auto", "hw.max_restarts=5", "hw.timeout=8")
AWAY = 5.0  # seconds that a machine is lost
ENOUGH = 150.0  # seconds, for two starts and what lies between them


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oracle(tmp_path_factory.mktemp("undisturbed"))


def assert_recovered(hosts: Hosts, pair: Pair, undisturbed: Path, *, said_by: tuple[int, ...] = (0, 1)) -> None:
    assert pair.codes(ENOUGH) == [0, 0], pair.outputs()
    assert_as_undisturbed(pair.run, undisturbed)
    assert summary(pair.run)["status"] == "finished"
    assert not half_written(pair.run)
    for n in said_by:
        assert "restart 1 of " in pair[n].output(), pair.outputs()
    written = {path.name for path in hosts.folder(1).iterdir() if not path.name.startswith("done-")}
    assert written <= {"paced.py", "begun", "__pycache__"}  # there is no shared disk, and no run directory here


def host_1_lost(hosts: Hosts, pair: Pair) -> tuple[int, ...]:
    hosts.kill(1)
    time.sleep(AWAY)
    pair.again(1)
    return (0,)


def host_1_replaced_at_once(hosts: Hosts, pair: Pair) -> tuple[int, ...]:
    hosts.kill(1)
    pair.again(1)
    return (0,)


def host_0_lost(hosts: Hosts, pair: Pair) -> tuple[int, ...]:
    hosts.kill(0)
    time.sleep(AWAY)
    pair.again(0)
    return (1,)


def both_lost(hosts: Hosts, pair: Pair) -> tuple[int, ...]:
    for n in (0, 1):
        hosts.kill(n)
    for n in (0, 1):
        pair.again(n)
    return ()


def link_down(hosts: Hosts, pair: Pair) -> tuple[int, ...]:
    hosts.disconnect(1)
    time.sleep(20)
    hosts.connect(1)
    return (0, 1)


@pytest.mark.parametrize(
    "disturb",
    [
        host_1_lost,
        host_1_replaced_at_once,
        host_0_lost,
        both_lost,
        link_down,
    ],
)
def test_lost_and_back(hosts: Hosts, undisturbed: Path, disturb: Callable[[Hosts, Pair], tuple[int, ...]]) -> None:
    pair = Pair(hosts, *WORDS)
    pair.until_saved()
    said_by = disturb(hosts, pair)
    assert_recovered(hosts, pair, undisturbed, said_by=said_by)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        pytest.param("kill", f"was ended by SIGKILL at step {STEPS + 9}"),
        ("stop", "has stood still"),
    ],
    ids=["kill", "stop"],
)
def test_a_worker_alone(hosts: Hosts, undisturbed: Path, action: str, told: str) -> None:
    faults = [fault(epoch=1, step=9, rank=1, action=action)]
    pair = Pair(hosts, *WORDS, "hw.max_restarts=1", faults=faults)  # one loss is one restart, on each machine
    assert_recovered(hosts, pair, undisturbed)
    assert f"rank 1 on node1 {told}" in pair[1].output()


def test_a_fault_that_comes_again_ends_the_run(hosts: Hosts) -> None:
    pair = Pair(hosts, *WORDS, faults=[fault(epoch=1, step=9, rank=1, action="raise")])
    assert pair.codes(ENOUGH) == [1, 1], pair.outputs()
    for process in pair.processes:
        assert process.output().count("tinyexp: restart") == 1
        assert f"step {STEPS + 9} failed twice the same way" in process.output()
    assert "ValueError: I do not like this batch" in pair[0].output()


def test_as_often_as_hw_max_restarts_says(hosts: Hosts) -> None:
    faults = [fault(epoch=0, step=step, rank=1, action="kill") for step in (9, 19)]
    pair = Pair(hosts, *WORDS, "hw.max_restarts=1", faults=faults)
    assert pair.codes(ENOUGH) == [6, 6], pair.outputs()
    for process in pair.processes:
        assert process.output().count("tinyexp: restart") == 1
        assert "hw.max_restarts=1 are used up" in process.output()
