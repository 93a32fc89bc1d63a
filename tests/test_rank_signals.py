"""A signal to any of a run's processes is answered by all ranks: one step, one save, exit 75, a resume to the bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import digest, half_written, metrics, state, summary, until
from helpers import NO_BOARD

from tinyexp.heartbeat import FOLDER, Sign, read_signs
from tinyexp.launch import free_port
from tinyexp.signals import SIGNALS, SignalWatch

STEPS = 12  # of the only epoch
VAL = 18  # batches of val, a rank
NET = """
import time
from pathlib import Path

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(28 * 28 * in_channels, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(float(Path("wait-train" if self.training else "wait-val").read_text()))
        return self.layers(images)
"""
WORDS = (
    "run.dir=run",
    "hw=cpu",
    "model._target_=slow_net.Net",
    "train.epochs=1",
    f"train.limit_batches={STEPS}",
    "train.batch_size=16",
    "train.eval_batch_size=10",
    "train.ema=0.9",
    "log.every=3",
    *NO_BOARD,
    "ckpt.every_minutes=0",
    "optim=sgd",
    "optim.lr=0.05",
    "scheduler=cosine",
)


class Launched:
    """A run of two ranks in a session of its own, whose model is as slow as the test says."""

    def __init__(self, folder: Path, *words: str, torchrun: bool = False, train: float = 0.0, val: float = 0.0) -> None:
        self.folder = folder
        (folder / "slow_net.py").write_text(NET)
        (folder / "signs").mkdir(exist_ok=True)
        self.wait(train, val)
        by_torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
        launcher = [*by_torchrun, "-m", "tinyexp"] if torchrun else ["-m", "tinyexp", "hw.procs=2"]
        environment = dict(os.environ) | ({FOLDER: str(folder / "signs")} if torchrun else {})
        with (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *words],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self, train: float = 0.0, val: float = 0.0) -> None:
        """From now on each forward pass takes so many seconds longer."""
        for phase, seconds in (("train", train), ("val", val)):
            (self.folder / f"new-{phase}").write_text(str(seconds))
            (self.folder / f"new-{phase}").replace(self.folder / f"wait-{phase}")

    @property
    def ranks(self) -> list[Sign]:
        """What those that have begun say."""
        for pid in descendants(self.process.pid):
            if named := environment_of(pid).get(FOLDER):
                return read_signs(Path(named))
        return []

    def pid(self, who: str) -> int:
        """Of 'rank 0', 'rank 1', 'agent' or 'launcher'."""
        if who.startswith("rank"):
            return self.ranks[int(who[-1])].pid
        return self.process.pid if who == "launcher" else parent_of(self.ranks[0].pid)

    def until_step(self, step: int) -> Launched:
        until(lambda: len(self.ranks) == 2 and min(sign.step for sign in self.ranks) >= step)
        return self

    def send(self, number: signal.Signals, *whom: str) -> None:
        for pid in [self.pid(who) for who in whom]:
            os.kill(pid, number)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def end(self, seconds: float = 20) -> int:
        """The exit code; no process is left."""
        pids = descendants(self.process.pid)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.output}") from None
        until(lambda: not any(map(lives, pids)), 5)
        return code

    def kill(self) -> None:
        for pid in [*descendants(self.process.pid), self.process.pid]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Launched]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a run in `tmp_path`."""
    started: list[Launched] = []

    def make(*words: str, torchrun: bool = False, train: float = 0.0, val: float = 0.0) -> Launched:
        started.append(Launched(tmp_path, *words, torchrun=torchrun, train=train, val=val))
        return started[-1]

    yield make
    for each in started:
        each.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run = Launched(folder, *WORDS)
    assert run.end(60) == 0, run.output
    return folder / "run"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def descendants(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found.append((int(path.parent.name), parent_of(int(path.parent.name))))
        except OSError:
            continue
    below, new = list[int](), [pid]
    while new:
        new = [child for child, parent in found if parent in new]
        below += new
    return below


def environment_of(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in content.split("\0") if "=" in line)


def assert_saved(run: Launched, number: signal.Signals, code: int = 75) -> int:
    """It is told and recorded once, everywhere; at which step."""
    assert code == 75, run.output
    directory = run.folder / "run"
    (told,) = re.findall(rf"interrupted by {number.name} at step (\d+), saved", run.output)
    assert {"status": "interrupted", "exit_code": 75, "steps": int(told)}.items() <= summary(directory).items()
    assert state(directory)["step"] == int(told)
    assert not half_written(directory)
    assert "left at once" not in run.output
    return int(told)


def assert_goes_on(run: Launched, start: Start, whole: Path) -> None:
    """Resumed, it ends as the run that nothing disturbed."""
    resumed = start("resume=run", "trust=[slow_net.*]")
    assert resumed.end(30) == 0, resumed.output
    assert digest(run.folder / "run") == digest(whole)
    assert metrics(run.folder / "run") == metrics(whole)


# the echo


@pytest.fixture
def left() -> list[str]:
    return []


@pytest.fixture
def watch(left: list[str]) -> Iterator[SignalWatch]:
    """Takes what comes within 0.4 s of the first signal for the same one."""
    assert threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    made = SignalWatch(left.append, echo=0.4)
    yield made
    if made._thread.is_alive():
        made.close()
    for number, handler in before.items():  # an answered one leaves them ignored
        signal.signal(number, handler)


def test_an_echo_counts_once(watch: SignalWatch, left: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.raise_signal(number)
        time.sleep(0.02)
    assert watch.received == "SIGTERM"
    time.sleep(0.1)
    assert not left
    assert capfd.readouterr().err == ""  # the launcher says it
    time.sleep(0.4)
    signal.raise_signal(signal.SIGINT)
    until(lambda: bool(left), 5)
    assert left == ["SIGINT after SIGTERM"]


def test_after_the_end_an_echo_does_not_end_a_process_that_has_saved(watch: SignalWatch) -> None:
    signal.raise_signal(signal.SIGTERM)
    until(lambda: watch.received is not None, 5)
    watch.close()
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}


def test_without_a_signal_the_handlers_of_before_come_back(left: list[str]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    SignalWatch(left.append, echo=0.4).close()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_without_a_launcher_there_is_no_echo(left: list[str]) -> None:
    watch = SignalWatch(left.append)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: bool(left), 5)
    watch.close()
    assert left == ["SIGTERM after SIGTERM"]


# whole runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "number"),
    [
        (("rank 0",), signal.SIGTERM),
        (("rank 1",), signal.SIGUSR1),
        (("launcher",), signal.SIGINT),
        (("agent",), signal.SIGTERM),
        (("launcher", "agent", "rank 0", "rank 1"), signal.SIGTERM),  # as a scheduler does
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value.name,
)
def test_all_save_at_one_step(start: Start, whole: Path, whom: tuple[str, ...], number: signal.Signals) -> None:
    run = start(*WORDS, train=0.3).until_step(2)
    sent_at = max(sign.step for sign in run.ranks)
    run.send(number, *whom)
    code = run.end()
    assert sent_at <= assert_saved(run, number, code) <= sent_at + 5  # about a second of steps, which may double
    assert run.output.count("saving after this step") == ("launcher" in whom)
    if "rank 0" not in whom:
        assert_goes_on(run, start, whole)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["rank 1"])
def test_in_val(start: Start, whole: Path, who: str) -> None:
    run = start(*WORDS, val=0.3).until_step(STEPS)
    time.sleep(1.5)
    began = time.monotonic()
    run.send(signal.SIGTERM, who)
    assert assert_saved(run, signal.SIGTERM, run.end()) == STEPS
    assert time.monotonic() - began < 0.3 * VAL  # not after all of it
    assert state(run.folder / "run")["step_in_epoch"] == STEPS
    if who == "rank 1":
        assert_goes_on(run, start, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_under_torchrun(start: Start, number: signal.Signals) -> None:
    """torchrun passes SIGTERM on, and SIGUSR1 comes to a rank alone."""
    run = start(*WORDS, train=0.3, torchrun=True).until_step(2)
    run.send(number, "rank 1" if number == signal.SIGUSR1 else "agent")
    code = run.end(40)
    assert code != 0  # torchrun's own; it has no 75
    assert_saved(run, number)


@pytest.mark.slow
def test_a_second_signal_leaves_at_once(start: Start) -> None:
    run = start(*WORDS, train=0.1).until_step(3)
    run.wait(train=15)
    time.sleep(0.3)
    run.send(signal.SIGTERM, "launcher")
    time.sleep(0.5)
    began = time.monotonic()
    run.send(signal.SIGINT, "launcher")  # kept back until ranks do not take it for an echo
    assert run.end() == 75, run.output
    assert time.monotonic() - began < 8
    assert "left at once: SIGINT after SIGTERM" in run.output
    assert {"status": "interrupted", "exit_code": 75}.items() <= summary(run.folder / "run").items()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1])
def test_a_stopped_peer_does_not_hold_the_end_up(start: Start, stopped: int) -> None:
    run = start(*WORDS, "hw.timeout=4", train=0.2).until_step(2)
    pid = run.pid(f"rank {stopped}")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.5)
    run.send(signal.SIGTERM, "launcher")
    assert run.end(25) == 6, run.output
    assert f"rank {stopped} on " in run.output
    assert "has stood still for" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "agent"])
def test_none_outlives_one_that_is_killed(start: Start, who: str) -> None:
    run = start(*WORDS, train=0.2).until_step(2)
    pids = descendants(run.process.pid)
    assert len(pids) >= 3
    run.send(signal.SIGKILL, who)
    assert run.end() == (-signal.SIGKILL if who == "launcher" else 6), run.output
    until(lambda: not any(map(lives, pids)), 10)


@pytest.mark.slow
def test_a_launcher_that_is_killed_at_the_start_leaves_none(start: Start) -> None:
    """Before anything of its children has been imported."""
    run = start(*WORDS, train=20)
    until(lambda: bool(descendants(run.process.pid)))
    pids = descendants(run.process.pid)
    run.process.kill()
    run.process.wait()
    try:
        until(lambda: not any(map(lives, pids)), 12)
    finally:
        for pid in [each for agent in pids for each in (*descendants(agent), agent)]:
            os.kill(pid, signal.SIGKILL)
