"""A signal or the end of the time is answered with a checkpoint and exit code 75, and nothing is left behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import (
    FOREVER,
    SMALL,
    STEPS,
    Ended,
    Fault,
    Replaced,
    digest,
    half_written,
    metrics,
    pause,
    run,
    send_self,
    start,
    state,
    summary,
    terminate,
    until,
)

from tinyexp.signals import SIGNALS, SignalWatch

pytestmark = pytest.mark.slow

BLOCKED = Fault("tinyexp.engine.optimizer_step", pause, nth=5)  # in the main thread, in C

SLOW = Fault("tinyexp.engine.optimizer_step", functools.partial(time.sleep, 0.1), times=FOREVER)  # time for a signal


def assert_left_in_order(folder: Path, ended: Ended, uncut: Path, step: int | None = None) -> None:
    """Saved at this step, and it is in all the places; resumed, it ends as the uncut run."""
    assert ended.code == 75, ended.output
    directory = folder / "run"
    assert {"status": "interrupted", "exit_code": 75}.items() <= summary(directory).items()
    if step is not None:
        assert f"at step {step}, saved" in ended.output
        assert state(directory)["step"] == step
    assert run(folder, "resume=run", "train.max_time=null").code == 0
    assert digest(directory) == digest(uncut)
    assert metrics(directory) == metrics(uncut)
    assert not half_written(directory)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_in_a_step(tmp_path: Path, uncut: Path, number: signal.Signals) -> None:
    fault = Fault("tinyexp.engine.optimizer_step", functools.partial(send_self, number), nth=5)
    ended = run(tmp_path, *SMALL, faults=[fault])
    assert f"interrupted by {number.name}" in ended.output
    assert_left_in_order(tmp_path, ended, uncut, step=5)


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        pytest.param(Fault("tinyexp.verbs.train.Data", terminate), 1, id="start-up"),
        pytest.param(Fault("tinyexp.engine.EvalSums.add", terminate), STEPS, id="val"),
        pytest.param(Fault("tinyexp.engine.EvalSums.scores", terminate), STEPS, id="after val"),
        pytest.param(Fault("torch.save", terminate, nth=4), 5, id="copying"),
        pytest.param(Fault("os.fsync", terminate, r"\.last\.pt\.tmp-", nth=4), None, id="writing"),
    ],
)
def test_elsewhere(tmp_path: Path, uncut: Path, fault: Fault, step: int | None) -> None:
    assert_left_in_order(tmp_path, run(tmp_path, *SMALL, faults=[fault]), uncut, step)


def test_val_is_not_waited_for(tmp_path: Path) -> None:
    assert run(tmp_path, *SMALL, faults=[Fault("tinyexp.engine.EvalSums.add", terminate)]).code == 75
    assert {"epoch": 0, "step_in_epoch": STEPS}.items() <= state(tmp_path / "run").items()


def test_in_the_last_step_of_all(tmp_path: Path, uncut: Path) -> None:
    fault = Fault("tinyexp.engine.optimizer_step", terminate, nth=2 * STEPS)
    assert_left_in_order(tmp_path, run(tmp_path, *SMALL, faults=[fault]), uncut, step=2 * STEPS)


def test_after_the_last_val_the_run_is_finished(tmp_path: Path, uncut: Path) -> None:
    ended = run(tmp_path, *SMALL, faults=[Fault("tinyexp.engine.EvalSums.scores", terminate, nth=2)])
    assert ended.code == 0
    assert summary(tmp_path / "run")["status"] == "finished"
    assert digest(tmp_path / "run") == digest(uncut)


def test_second_signal_leaves_at_once(tmp_path: Path, uncut: Path) -> None:
    child = start(tmp_path, *SMALL, faults=[BLOCKED]).until_paused()
    child.send(signal.SIGTERM)
    time.sleep(0.3)
    assert child.alive, "the first signal must wait for the step"
    child.send(signal.SIGINT)
    ended = child.wait(10)
    assert "left at once: SIGINT after SIGTERM" in ended.output
    assert_left_in_order(tmp_path, ended, uncut)


def test_second_signal_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    child = start(tmp_path, *SMALL, faults=[Fault("tinyexp.verbs.train.Data", pause)]).until_paused()
    child.send(signal.SIGTERM)
    child.send(signal.SIGUSR1)
    assert child.wait(10).code == 1
    assert {"status": "failed", "exit_code": 1}.items() <= summary(tmp_path / "run").items()


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.08])
def test_two_signals_in_a_tenth_of_a_second(tmp_path: Path, uncut: Path, gap: float) -> None:
    child = start(tmp_path, *SMALL, faults=[SLOW])
    until((tmp_path / "run/checkpoints/prev.pt").exists)
    child.send(signal.SIGTERM)
    time.sleep(gap)
    if child.alive:
        child.send(signal.SIGINT)
    assert_left_in_order(tmp_path, child.wait(10), uncut)


def test_deadline(tmp_path: Path, uncut: Path) -> None:
    soon = Replaced("tinyexp.run.SignalWatch", functools.partial(SignalWatch, deadline=1.0))
    child = start(tmp_path, *SMALL, faults=[BLOCKED, soon]).until_paused()
    child.send(signal.SIGUSR1)
    ended = child.wait(10)
    assert "left at once: SIGUSR1: no checkpoint within 1 s" in ended.output
    assert_left_in_order(tmp_path, ended, uncut)


@pytest.mark.parametrize(
    "stuck",
    [Fault("os.fsync", pause, r"summary\.json", nth=2), Fault("tinyexp.rundir.RunDirectory.restore_terminal", pause)],
    ids=["disk", "terminal"],
)
def test_second_signal_leaves_though_all_hangs(tmp_path: Path, stuck: Fault) -> None:
    child = start(tmp_path, *SMALL, faults=[BLOCKED, stuck]).until_paused()
    child.send(signal.SIGTERM)
    child.send(signal.SIGINT)
    assert child.wait(10).code == 75


def test_group_signal_counts_once_with_loader_processes(tmp_path: Path, uncut: Path) -> None:
    words = (*SMALL, "dataset.workers=2")
    child = start(tmp_path, *words, faults=[SLOW])
    until((tmp_path / "run/checkpoints/prev.pt").exists)
    assert len(session(child.pid)) == 3
    os.killpg(child.pid, signal.SIGINT)
    ended = child.wait(10)
    assert "left at once" not in ended.output
    until(lambda: not session(child.pid), 4)  # an orphan would be there for 5 s
    assert_left_in_order(tmp_path, ended, uncut)


def test_max_time(tmp_path: Path, uncut: Path) -> None:
    ended = run(tmp_path, *SMALL, "train.max_time=0.001")
    assert "interrupted by train.max_time" in ended.output
    assert_left_in_order(tmp_path, ended, uncut, step=1)


def test_final_state_is_saved_off_schedule(tmp_path: Path) -> None:
    words = ("ckpt.every_minutes=null", "log.every=7", "train.limit_batches=5")
    assert run(tmp_path, *SMALL, *words).code == 0
    assert state(tmp_path / "run")["step"] == 10
    assert state(tmp_path / "run")["epoch"] == 2


@pytest.mark.slow
def test_the_program_itself(tmp_path: Path, uncut: Path) -> None:
    """Not forked by the harness: what this file shows holds for `python -m tinyexp`."""
    command = [sys.executable, "-m", "tinyexp", *SMALL]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        until((tmp_path / "run/checkpoints/last.pt").exists)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert_left_in_order(tmp_path, Ended(process.returncode, output + errors), uncut)


def session(leader: int) -> list[int]:
    """The processes of a session that have not ended; a child of the harness leads its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        status, _, _, number = rest.split()[:4]
        found += [int(path.parent.name)] if int(number) == leader and status != "Z" else []
    return found
