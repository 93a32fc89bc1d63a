"""What a supervisor makes of its ranks' ends: exit code, words, another attempt or none; and that nothing outlives it.

In the place of torchrun's launcher stands a script that forks small ranks, each of which runs a line of Python.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults import until

import tinyexp
from tinyexp import supervisor as module
from tinyexp.signals import SIGNALS
from tinyexp.supervisor import Supervisor

AGENT = """#!{python} -S
import json, os, signal, sys, time, types
from pathlib import Path
sys.path.insert(0, {root!r})
package = sys.modules["tinyexp"] = types.ModuleType("tinyexp")  # without what its __init__ imports
package.__path__ = [{root!r} + "/tinyexp"]
from tinyexp.heartbeat import Heartbeat, report
here, environment = Path(__file__).parent, dict(os.environ)
with (here / "started").open("a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
attempt = len((here / "started").read_text().splitlines()) - 1
plan = json.loads((here / "plan").read_text())
plan = plan[min(attempt, len(plan) - 1)]

def run(rank, line):
    heartbeat = Heartbeat.of_rank(rank)

    def end(code, step=0, error="", directory=None):
        heartbeat.reached(step)
        if directory:
            report("run", {{"directory": directory}})
        report(f"rank-{{rank}}", {{"code": code, "error": error}})
        os._exit(code)

    def kill(number=signal.SIGKILL, step=0):
        heartbeat.reached(step)
        signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
        os.kill(os.getpid(), number)
        time.sleep(30)

    def beat(seconds, until=lambda: False):
        last = time.monotonic() + seconds
        while time.monotonic() < last and not until():
            heartbeat.beat()
            time.sleep(0.02)

    def take(*numbers):
        got = []
        for number in numbers or (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, lambda number, _: (got.append(number), note(f"got {{signal.Signals(number).name}}")))
        return got

    def note(text):
        with (here / f"rank-{{rank}}").open("a") as log:
            print(text, file=log)

    exec(line, {{**globals(), **locals()}})
    os._exit(0)

ranks = {{}}
for rank, line in enumerate(plan["ranks"]):
    if (pid := os.fork()) == 0:
        run(rank, line)
    ranks[pid] = rank
codes = {{}}
while ranks:
    pid, status = os.wait()
    codes[str(ranks.pop(pid))] = os.waitstatus_to_exitcode(status)
failed = {{rank: code for rank, code in codes.items() if code}}
if failed:
    report("agent", {{"codes": failed}})
exec(plan["agent"])
sys.exit(bool(failed))
"""


def slowly(*values: Any) -> list[Any]:
    """Further values of a test, that `make check` leaves out."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


class Stage:
    """A folder in which the script stands, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "agent"
        root = str(Path(tinyexp.__file__).parents[1])
        self.script.write_text(AGENT.format(python=sys.executable, root=root))
        self.script.chmod(0o755)

    def run(
        self,
        *attempts: Sequence[str],
        agent: str = "",
        words: Sequence[str] = ("train.epochs=3",),
        timeout: float = 20,
        max_restarts: int = 0,
    ) -> int:
        """The exit code, where the ranks of each attempt run these lines; the last attempt's are those of all after."""
        plan = [{"ranks": list(lines), "agent": agent} for lines in attempts]
        (self.folder / "plan").write_text(json.dumps(plan))
        counted = iter(range(100))
        made = Supervisor(lambda: [f"--attempt={next(counted)}"], words, timeout=timeout, max_restarts=max_restarts)
        return made.run()

    @property
    def started(self) -> list[list[str]]:
        """The words of each attempt."""
        return [json.loads(line) for line in (self.folder / "started").read_text().splitlines()]

    def noted(self, rank: int) -> list[str]:
        path = self.folder / f"rank-{rank}"
        return path.read_text().splitlines() if path.exists() else []

    def when_noted(self, rank: int, text: str, *numbers: signal.Signals, gap: float = 0.1) -> threading.Thread:
        """Send this process the signals when a rank has come so far."""

        def send() -> None:
            until = time.monotonic() + 10
            while text not in self.noted(rank) and time.monotonic() < until:
                time.sleep(0.01)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(gap)

        thread = threading.Thread(target=send)
        thread.start()
        return thread


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setattr(module.sys, "executable", str(made.script))
    monkeypatch.setattr(module, "_LOOK", 0.01)
    return made


def session_of(script: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(script).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def timed(job: Callable[[], int]) -> tuple[int, float]:
    began = time.monotonic()
    return job(), time.monotonic() - began


# the exit code


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["end(0)", "end(0)"], 0),
        (["end(6)", "end(3)"], 3),
        (["end(4)", "kill()"], 4),
        (["kill()", "end(6)"], 6),
        (["end(75)", "end(75)"], 75),
        *slowly(
            (["end(2)", "end(6)"], 2),
            (["end(6)", "end(1)", "end(6)"], 1),
            (["end(5)", "end(75)"], 5),
            (["kill(signal.SIGSEGV)"], 6),
            (["end(6)", "end(6)"], 6),
            (["end(75)", "end(6)"], 6),
            (["end(75)", "kill()"], 6),
            (["end(0)", "end(75)"], 75),
            (["end(0)", "kill()"], 6),
            (["end(0)", "end(2)"], 2),
        ),
    ],
)
def test_what_a_rank_found_wrong_comes_before_what_follows(stage: Stage, lines: list[str], code: int) -> None:
    assert stage.run(lines) == code
    assert len(stage.started) == 1


def test_a_rank_that_could_say_nothing_is_told(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    assert stage.run(["end(6, step=9)", "kill(step=1234)"]) == 6
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tinyexp: rank 1 on ")
    assert line.endswith(" was ended by SIGKILL at step 1,234: most often the system was out of memory")


@pytest.mark.slow
def test_a_rank_that_crashed_is_not_said_to_lack_memory(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    assert stage.run(["kill(signal.SIGSEGV, step=2)"]) == 6
    assert capfd.readouterr().err.endswith(" was ended by SIGSEGV at step 2\n")


def test_a_launcher_that_was_killed_is_told_and_its_ranks_are_not(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    assert stage.run(["beat(0.2)"], agent="os.kill(os.getpid(), signal.SIGKILL)") == 6
    told = capfd.readouterr().err
    assert "tinyexp: torchrun's launcher on " in told
    assert "was ended by SIGKILL at step 0" in told
    assert told.count("\n") == 1


def test_no_rank_began(stage: Stage) -> None:
    assert stage.run([], agent="sys.exit(1)") == 6
    assert stage.run([]) == 0


def test_the_words_go_to_torchrun_as_they_are(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    assert stage.run(["end(0)"], words=["eval", "a run", "model={a: 1}"]) == 0
    (started,) = stage.started
    assert started.pop(3).startswith("--log-dir=")
    assert started == ["-m", "tinyexp.agent", "--attempt=0", "-m", "tinyexp", "eval", "a run", "model={a: 1}"]
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_the_ranks_files_are_removed(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "aside"))
    (tmp_path / "aside").mkdir()
    stage.run(["note(os.environ['TINYEXP_HEARTBEATS']); end(3)"])
    (named,) = stage.noted(0)
    assert Path(named).parent == tmp_path / "aside"
    assert not list((tmp_path / "aside").iterdir())


# another attempt


@pytest.mark.parametrize(
    "line", ["end(1)", "kill()", *slowly("end(5)", "end(6)", "kill(signal.SIGSEGV)", "kill(signal.SIGBUS)")]
)
def test_what_may_go_better_is_tried_again(stage: Stage, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert stage.run([line, "end(6)"], ["end(0)", "end(0)"], max_restarts=2) == 0
    assert [words[2] for words in stage.started] == ["--attempt=0", "--attempt=1"]
    assert "tinyexp: restart 1 of 2, from the last checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize("code", [2, 75, *slowly(3, 4)])
def test_what_would_go_the_same_is_not(stage: Stage, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert stage.run([f"end({code})", "end(6)" if code != 75 else "end(75)"], ["end(0)"], max_restarts=3) == code
    assert len(stage.started) == 1
    assert "restart" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "attempts"),
    [
        ("kill(step=7)", "kill(step=8)", 2),
        ("end(1, step=7, error='a')", "end(1, step=7, error='b')", 3),
        ("kill(step=7)", "kill(step=9)", 3),
        *slowly(
            ("kill(step=7)", "kill(step=7)", 2),
            ("kill(step=8)", "kill(step=7)", 2),
            ("end(1, step=7, error='a')", "end(1, step=7, error='a')", 2),
            ("kill(step=7)", "kill(signal.SIGSEGV, step=7)", 3),
            ("kill(step=7)", "end(5, step=7)", 3),
        ),
    ],
)
def test_the_same_twice_at_the_same_step_is_enough(
    stage: Stage, first: str, second: str, attempts: int, capfd: pytest.CaptureFixture[str]
) -> None:
    code = stage.run([first, "end(6)"], [second, "end(6)"], ["end(0)"], max_restarts=5)
    assert len(stage.started) == attempts
    assert (code == 0) == (attempts == 3)
    assert ("failed twice the same way (rank 0: " in capfd.readouterr().err) == (attempts == 2)


@pytest.mark.slow
def test_how_others_learn_of_it_makes_no_difference(stage: Stage) -> None:
    """Of two attempts that a rank's death ends, the other may be killed in the second."""
    code = stage.run(
        ["kill(step=7)", "end(6, 7, 'no sign for 4 s')"],
        ["kill(step=7)", "end(6, 7, 'for 5 s')"],
        ["end(0)"],
        max_restarts=3,
    )
    assert (code, len(stage.started)) == (6, 2)


def test_restarts_are_used_up(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [[f"end(5, step={10 * attempt}, error='full')"] for attempt in range(5)]
    assert stage.run(*lines, max_restarts=2) == 5
    assert len(stage.started) == 3
    assert [line.partition("tinyexp: ")[2] for line in capfd.readouterr().err.splitlines()] == [
        "restart 1 of 2, from the last checkpoint",
        "restart 2 of 2, from the last checkpoint",
        "hw.max_restarts=2 are used up",
    ]


def test_another_attempt_goes_on_in_the_runs_directory(stage: Stage) -> None:
    words = ["train.epochs=3", "run.dir=first", "hw.procs=2"]
    stage.run(["end(6, 3, directory='/a b/first')"], ["end(6, 30)"], ["end(0)"], words=words, max_restarts=2)
    for started in stage.started[1:]:
        assert started[6:] == ["train.epochs=3", "hw.procs=2", "run.dir='/a b/first'", "resume=auto"]


@pytest.mark.slow
def test_another_attempt_before_there_was_a_directory_has_the_same_words(stage: Stage) -> None:
    stage.run(["end(6)"], ["end(0)"], words=["train.epochs=3", "run.name=a"], max_restarts=2)
    assert stage.started[1][6:] == ["train.epochs=3", "run.name=a"]


def test_another_attempt_of_a_resumed_run_has_the_same_words(stage: Stage) -> None:
    words = ["resume=outputs/run", "train.epochs=9"]
    stage.run(["end(6, 3, directory='/x/outputs/run')"], ["end(0)"], words=words, max_restarts=1)
    assert stage.started[1][6:] == words


@pytest.mark.slow
def test_resume_auto_stays_one_word(stage: Stage) -> None:
    words = ["resume=auto", "run.dir=run", "train.epochs=9"]
    stage.run(["end(6, 3, directory='/x/run')"], ["end(0)"], words=words, max_restarts=1)
    assert stage.started[1][6:] == ["train.epochs=9", "run.dir=/x/run", "resume=auto"]


# signals


@pytest.mark.parametrize("number", [signal.SIGTERM, *slowly(signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)])
def test_a_signal_is_passed_on_once(stage: Stage, number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    line = "report('run', {'a': 1}); got = take(); note('ready'); beat(9, lambda: got); beat(0.15); end(75)"
    before = {each: signal.getsignal(each) for each in SIGNALS}
    sender = stage.when_noted(1, "ready", number)
    assert stage.run([line.replace("'ready'", "'up'"), f"beat(0.2); {line}"], max_restarts=3) == 75
    sender.join()
    assert [stage.noted(rank) for rank in (0, 1)] == [["up", f"got {number.name}"], ["ready", f"got {number.name}"]]
    assert len(stage.started) == 1
    told = capfd.readouterr().err
    assert told == f"tinyexp: {number.name}: saving after this step; once more leaves at once\n"
    assert {each: signal.getsignal(each) for each in SIGNALS} == before


@pytest.mark.slow
def test_a_second_signal_is_passed_on_too(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    line = "report('run', {'a': 1}); got = take(); note('ready'); beat(9, lambda: len(got) > 1); end(75)"
    sender = stage.when_noted(0, "ready", signal.SIGTERM, signal.SIGINT)
    assert stage.run([line]) == 75
    sender.join()
    assert stage.noted(0) == ["ready", "got SIGTERM", "got SIGINT"]
    assert capfd.readouterr().err.count("saving after this step") == 1


@pytest.mark.parametrize("line", ["kill()", *slowly("end(6)", "end(1)")])
def test_after_a_signal_nothing_is_started_again(stage: Stage, line: str) -> None:
    sender = stage.when_noted(0, "ready", signal.SIGTERM)
    code = stage.run([f"got = take(); note('ready'); beat(9, lambda: got); {line}"], ["end(0)"], max_restarts=3)
    sender.join()
    assert code in (1, 6)
    assert len(stage.started) == 1


def test_a_signal_before_any_rank_began_ends_the_launcher(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    sender = stage.when_noted(9, "ready", signal.SIGTERM)
    agent = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); (here / 'rank-9').write_text('ready\\n')"
    code, seconds = timed(lambda: stage.run([], agent=f"{agent}; time.sleep(20)", max_restarts=2))
    sender.join()
    assert code == 1
    assert seconds < 5
    assert capfd.readouterr().err == "tinyexp: interrupted before there was anything to save\n"


@pytest.mark.slow
def test_an_ignored_hangup_stays_ignored(stage: Stage) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sender = stage.when_noted(0, "ready", signal.SIGHUP)
        assert stage.run(["got = take(); note('ready'); beat(0.6); end(75 if got else 0)"]) == 0
        sender.join()
    finally:
        signal.signal(signal.SIGHUP, before)


# what hangs


@pytest.mark.slow
def test_ranks_that_heed_no_signal_are_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST", 0.5)
    sender = stage.when_noted(0, "ready", signal.SIGTERM)
    code, seconds = timed(lambda: stage.run(["report('run', {'a': 1}); take(); note('ready'); beat(20)"]))
    sender.join()
    assert code == 6
    assert seconds < 5
    until(lambda: not session_of(stage.script), 5)


def test_a_rank_that_stands_still_is_ended(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    code, seconds = timed(lambda: stage.run(["beat(0.1); time.sleep(20)", "beat(0.9); end(6)"], timeout=0.4))
    assert code == 6
    assert seconds < 8
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("tinyexp: rank 0 on ")
    assert "has stood still for " in line
    assert line.endswith(" s: ended")


@pytest.mark.slow
def test_a_stopped_rank_is_ended_and_another_attempt_made(stage: Stage) -> None:
    stopped = "heartbeat.reached(5); os.kill(os.getpid(), signal.SIGSTOP); time.sleep(20)"
    assert stage.run([stopped], ["end(0)"], timeout=0.3, max_restarts=1) == 0
    assert len(stage.started) == 2


@pytest.mark.slow
def test_a_rank_that_beats_is_not_ended_however_long_its_step(stage: Stage) -> None:
    assert stage.run(["beat(1.5); end(0)"], timeout=0.3) == 0


@pytest.mark.slow
def test_a_launcher_that_lingers_is_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LINGER", 0.4)
    code, seconds = timed(lambda: stage.run(["end(3)", "end(6)"], agent="time.sleep(20)"))
    assert code == 3
    assert seconds < 5
    until(lambda: not session_of(stage.script), 5)


@pytest.mark.slow
def test_a_launcher_of_finished_ranks_may_wait_for_the_other_machines(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINGER", 0.1)
    code, seconds = timed(lambda: stage.run(["end(0)", "end(0)"], agent="time.sleep(1)"))
    assert code == 0
    assert seconds > 1
    monkeypatch.setattr(module, "_BARRIER", 0.3)
    code, seconds = timed(lambda: stage.run(["end(0)", "end(0)"], agent="time.sleep(20)"))
    assert code == 0
    assert seconds < 5
