"""One machine's part of a run of several processes: torchrun's launcher, watched, and started again where that helps.

It knows nothing of torch, and speaks with the ranks by signals, their heartbeat files and their last reports.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyexp.errors import Interrupted, RankLostError, TinyexpError, describe_exit
from tinyexp.files import refusal
from tinyexp.heartbeat import CPP_LOG, FOLDER, PARENT, Sign, read_report, read_reports, read_signs
from tinyexp.overrides import word
from tinyexp.signals import answering

_LOOK = 0.2  # seconds between two looks
_LINGER = 8.0  # seconds that torchrun may outlive its ranks when they have not all finished
_BARRIER = 330.0  # and when they have: it waits 300 for the other machines
_ECHO = 2.5  # seconds, a little more than the ranks'
_LAST = 35.0  # seconds from a signal to the end: a checkpoint is given 20, torchrun 30
_NOBODY = ("no rank began",)
_QUIET = {CPP_LOG: "FATAL"}  # of torchrun's launcher
_CURE = "start the same line on each within hw.join_timeout; is node 0's port open and free? See docs/machines.md"
_AGAIN = (1, 5, RankLostError.exit_code)  # what may go better another time


@dataclass(frozen=True)
class Ending:
    """How an attempt ended on this machine."""

    code: int
    step: int  # the last one done
    how: tuple[str, ...]  # by rank
    begun: bool = True  # had the run a directory?
    directory: str | None = None  # of the run, where rank 0 is here

    def is_like(self, other: Ending) -> bool:
        """The same way at the same step? Ranks may be one step apart when one is lost."""
        return self.how == other.how != _NOBODY and abs(self.step - other.step) <= 1


class Supervisor:
    """`launcher(attempt)` gives torchrun's words of an attempt; `words` are the program's own."""

    def __init__(
        self, launcher: Callable[[], list[str]], words: Sequence[str], *, timeout: float, max_restarts: int
    ) -> None:
        self._launcher, self._words = launcher, list(words)
        self._timeout, self._max_restarts = timeout, max_restarts
        self._asked: list[int] = []  # signals, to be passed on
        self._deadline: float | None = None
        self._ended: set[int] = set()  # ranks that stood still

    def run(self) -> int:
        """Until it is done, or another attempt would not help; returns the exit code."""
        before: Ending | None = None
        with answering(self._asked.append):
            for restarts in range(self._max_restarts + 1):
                ending = self._attempt()
                if self._deadline is not None and not ending.begun and ending.code:
                    _say("interrupted before there was anything to save")
                    return 1
                if ending.code not in _AGAIN or self._deadline is not None:
                    return ending.code
                if before and ending.is_like(before):
                    _say(f"step {ending.step:,} failed twice the same way ({'; '.join(ending.how)}): not started again")
                    return ending.code
                if restarts < self._max_restarts:
                    self._go_on_in(ending.directory)
                    _say(f"restart {restarts + 1} of {self._max_restarts}, from the last checkpoint")
                before = ending
        if self._max_restarts:
            _say(f"hw.max_restarts={self._max_restarts} are used up")
        return ending.code

    def _go_on_in(self, directory: str | None) -> None:
        """The words of the next attempt: a checkpoint that was named holds until there is a later one."""
        if directory is None:
            return
        resumed = next((each for each in self._words if each.startswith("resume=") and each != "resume=auto"), None)
        go_on = [word("resume", directory)] if resumed else [word("run.dir", directory), "resume=auto"]
        last = Path(directory, "checkpoints", "last.pt")
        if resumed is None or (resumed.endswith(".pt") and last.exists() and last.stat().st_mtime > self._began):
            self._words = [*(one for one in self._words if not one.startswith(("run.dir=", "resume="))), *go_on]

    def _attempt(self) -> Ending:
        try:
            folder = Path(tempfile.mkdtemp(prefix="tinyexp-"))
        except OSError as error:
            raise refusal(
                f"{tempfile.gettempdir()} cannot be written: {error.strerror}", error, TinyexpError
            ) from error
        self._ended.clear()
        self._began = time.time()
        try:
            launcher = [*self._launcher(), f"--log-dir={folder}/torchrun"]
            command = [sys.executable, "-m", "tinyexp.agent", *launcher, "-m", "tinyexp", *self._words]
            # a session of its own, so that Ctrl-C reaches the ranks once: from here
            environment = {**_QUIET, **os.environ, FOLDER: str(folder), PARENT: str(os.getpid())}
            agent = subprocess.Popen(command, env=environment, start_new_session=True)
            self._watch(agent, folder)
            return _ending(agent, folder, self._ended, asked=self._deadline is not None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _watch(self, agent: subprocess.Popen[bytes], folder: Path) -> None:
        """Until torchrun has ended: signals are passed on, what hangs is ended."""
        unchanged: dict[int, tuple[int, float]] = {}  # by rank: its last beat, and for how long
        alone = 0.0  # seconds since all ranks ended
        while agent.poll() is None:
            time.sleep(_LOOK)  # what is counted is looks: a machine that slept has not seen them stand still
            signs = read_signs(folder)
            living = [sign for sign in signs if _is_alive(sign.pid)]
            self._pass_on(agent, living, bool(read_report(folder, "run")))
            for sign in living:
                beats, silent = unchanged.get(sign.rank, (-1, 0.0))
                silent = silent + _LOOK if beats == sign.beats else 0.0
                unchanged[sign.rank] = sign.beats, silent
                if silent > self._timeout:
                    _say(f"rank {sign.rank} on {socket.gethostname()} has stood still for {silent:.0f} s: ended")
                    self._ended.add(sign.rank)
                    _kill(sign.pid)
            alone = alone + _LOOK if signs and not living else 0.0
            finished = all(read_report(folder, f"rank-{sign.rank}").get("code") == 0 for sign in signs)
            if alone > (_BARRIER if finished else _LINGER) or self._is_late():
                agent.kill()
                for sign in living:
                    _kill(sign.pid)
                agent.wait()

    def _pass_on(self, agent: subprocess.Popen[bytes], living: list[Sign], begun: bool) -> None:
        """`begun`: is there a run that may save?"""
        while self._asked:
            now = time.monotonic()
            if self._deadline is None and begun:
                _say(f"{signal.Signals(self._asked[0]).name}: saving after this step; once more leaves at once")
            if self._deadline is not None and now < self._deadline - _LAST + _ECHO:
                return  # ranks take one that comes so soon for the same
            number = self._asked.pop(0)
            self._deadline = self._deadline or now + _LAST
            for sign in living:
                _kill(sign.pid, number)
            if not living:
                agent.terminate()

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline


def _ending(agent: subprocess.Popen[bytes], folder: Path, ended: set[int], *, asked: bool) -> Ending:
    """What became of an attempt; ranks that could say nothing any more are told here. `asked`: a signal ended it."""
    signs = {sign.rank: sign for sign in read_signs(folder)}
    reports = read_reports(folder) | {rank: read_report(folder, f"rank-{rank}") for rank in signs}
    step = max((sign.step for sign in signs.values()), default=0)
    of_agent = read_report(folder, "agent")
    if told := of_agent.get("error"):
        _say(f"the machines did not come together: {told} ({_CURE})")
    about = read_report(folder, "run")
    if not reports and agent.returncode > 0 and not told and not asked:
        _say(f"no process began within hw.join_timeout ({_CURE})")
    if not reports:
        return Ending(RankLostError.exit_code if agent.returncode else 0, step, _NOBODY, begun=False)
    of_ranks = of_agent.get("codes", {})
    codes = {rank: told["code"] if "code" in told else of_ranks.get(str(rank)) for rank, told in reports.items()}
    host = socket.gethostname()
    if agent.returncode < 0:
        _say(f"torchrun's launcher on {host} was ended {describe_exit(agent.returncode)} at step {step:,}")
    for rank, code in codes.items():
        if (code is None or code < 0) and agent.returncode >= 0 and rank not in ended:
            hint = ": most often the system was out of memory" if code == -signal.SIGKILL else ""
            _say(f"rank {rank} on {host} {_how(code)} at step {signs[rank].step if rank in signs else 0:,}{hint}")
    first = [rank for rank, code in codes.items() if code not in (0, RankLostError.exit_code)] or list(codes)
    how = tuple(f"rank {rank}: {_tell(codes[rank], reports[rank])}" for rank in first)
    begun = bool(about) or 0 not in codes
    return Ending(_code(list(codes.values())), step, how, begun=begun, directory=about.get("directory"))


def _code(codes: list[int | None]) -> int:
    """The exit code of all: what a rank found wrong comes before what follows for the others."""
    told = [code for code in codes if code is not None and code >= 0]
    wrong = [code for code in told if code not in (0, RankLostError.exit_code, Interrupted.exit_code)]
    if wrong:
        return wrong[0]
    lost = len(told) < len(codes) or RankLostError.exit_code in told
    return RankLostError.exit_code if lost else max(told)


def _how(code: int | None) -> str:
    if code is None:
        return "ended without a word"
    return f"was ended {describe_exit(code)}" if code < 0 else describe_exit(code)


def _tell(code: int | None, told: dict[str, object]) -> str:
    """What it was, without what may differ between two times."""
    error = str(told.get("error") or "")
    return _how(code) + (f": {error}" if error and code not in (0, RankLostError.exit_code) else "")


def _is_alive(pid: int) -> bool:
    """Neither gone nor waiting to be reaped."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"tinyexp: {text}\n")
        sys.stderr.flush()
