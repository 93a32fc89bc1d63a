"""The fault tests' harness: whole runs in processes of their own, which a test may signal, kill or make fail.

A child is forked from a server that has imported the package once, so that a start takes 0.2 s and not 3. Faults come
from outside: signals, and wrappers that the child puts around functions before it runs the program.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import importlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Protocol

LAST = r"tmp-\S+ \S*/last\.pt$"  # the arguments of the renaming that makes a checkpoint
PREV = r"/prev\.pt$"  # and of the one that keeps the one before it
TIMES = ("images_per_second", "data_wait", "seconds")  # a row's fields that may differ between a cut and an uncut run
FOREVER = math.inf  # for Fault.times
STEPS = 8  # an epoch
SMALL = (  # two epochs in half a second, with a checkpoint after each step, and all that a checkpoint must hold
    "run.dir=run",
    "hw.threads=1",
    "train.epochs=2",
    f"train.limit_batches={STEPS}",
    "train.ema=0.9",
    "log.every=3",
    "ckpt.every_minutes=0",
    "model.dropout=0.3",
    "dataset.augment.crop=pad",
    "dataset.augment.padding=2",
    "dataset.augment.flip=0.5",
    "dataset.start_method=fork",
    "optim=sgd",
    "optim.lr=0.05",
    "scheduler=cosine",
)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["warm", "faults"])


class Installable(Protocol):
    def install(self) -> None:
        """In the child, before the program begins."""


@dataclass(frozen=True)
class Fault:
    """Do `action` at the `nth` call of `function` whose arguments, as text, match the pattern `about`."""

    function: str
    action: Callable[[], None]
    about: str = ""
    nth: int = 1
    times: float = 1  # so many calls in a row
    after: bool = False

    def install(self) -> None:
        calls = itertools.count(1)
        original = getattr(*_place(self.function))

        @functools.wraps(original)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            matches = re.search(self.about, _spell(arguments)) and self.nth <= next(calls) < self.nth + self.times
            if matches and not self.after:
                try:
                    self.action()
                except _SkippedError:
                    return None
            result = original(*arguments, **named)
            if matches and self.after:
                self.action()
            return result

        setattr(*_place(self.function), wrapped)


@dataclass(frozen=True)
class Torn:
    """A file whose path matches `about`: of the `nth` write, the first half is written, and then comes `action`."""

    about: str
    action: Callable[[], None]
    nth: int = 1

    def install(self) -> None:
        original, writes = io.open, itertools.count(1)

        def tear(write: Callable[[Any], int], content: Any) -> int:
            if next(writes) >= self.nth:
                half = write(content[: len(content) // 2])
                try:
                    self.action()
                except _SkippedError:
                    return half
            return write(content)

        def opened(path: Any, *arguments: Any, **named: Any) -> Any:
            file = original(path, *arguments, **named)
            return _Proxy(file, functools.partial(tear, file.write)) if re.search(self.about, str(path)) else file

        for place in ("io.open", "builtins.open"):
            setattr(*_place(place), opened)


class _Proxy:
    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Replaced:
    """Another thing in the place of this one."""

    name: str
    value: Any

    def install(self) -> None:
        setattr(*_place(self.name), self.value)


@dataclass(frozen=True)
class Called:
    """Something to do before the program begins."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]

    def install(self) -> None:
        self.function(*self.arguments)


def kill9() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    send_self(signal.SIGTERM)


def send_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # for the thread that watches for it


def pause() -> None:
    """Wait for ever, in a way that lets no Python signal handler run; Child.until_paused waits for this."""
    Path("paused").touch()
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    for _ in range(2):  # the second one is a deadlock
        libc.pthread_mutex_lock(mutex)


def wait_for_go() -> None:
    """Until the test opens the pipe `go` for writing, which lets all go at once."""
    Path("go").open().close()


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


disk_full = functools.partial(fail, errno.ENOSPC)
quota_full = functools.partial(fail, errno.EDQUOT)
disk_broken = functools.partial(fail, errno.EIO)


def skip() -> None:
    """Leave the call out."""
    raise _SkippedError


class _SkippedError(Exception):
    pass


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (minus the signal's number where one killed it), and all it printed."""

    code: int
    output: str


_children: list[Child] = []


class Child:
    """A run in a process, session and process group of its own, in the working directory `folder`."""

    def __init__(self, folder: Path, words: Sequence[str], faults: Sequence[Installable]) -> None:
        self._folder = folder
        self._output = folder / "output.txt"
        self._output.write_bytes(b"")
        (folder / "paused").unlink(missing_ok=True)
        _start_server()
        self._process = _context.Process(target=_child, args=(folder, words, faults))
        self._process.start()
        _children.append(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> Ended:
        self._process.kill()
        return self.wait()

    def until_paused(self) -> Child:
        until((self._folder / "paused").exists)
        return self

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 60) -> Ended:
        """Raises AssertionError where it is still there after so long."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
        assert code is not None, f"still running after {seconds} s:\n{self._output.read_text()}"
        return Ended(code, self._output.read_text())


def start(folder: Path, *words: str, faults: Sequence[Installable] = ()) -> Child:
    """`python -m tinyexp WORDS...` in `folder`."""
    return Child(folder, words, faults)


def run(folder: Path, *words: str, faults: Sequence[Installable] = (), seconds: float = 60) -> Ended:
    return start(folder, *words, faults=faults).wait(seconds)


def end_all() -> None:
    """Kill what this test has started and not ended."""
    while _children:
        child = _children.pop()
        if child.alive:
            child.kill()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Raises AssertionError where it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.005)


def state(run_directory: Path, name: str = "last") -> dict[str, Any]:
    """What a checkpoint has of the training's state, after its check."""
    from tinyexp.checkpoint import load

    return load(run_directory / "checkpoints" / f"{name}.pt")["state"]


def digest(run_directory: Path, name: str = "last") -> str:
    """SHA-256 over every tensor of a checkpoint's state and every plain value but the time, with their names."""
    sha = hashlib.sha256()
    _digest(sha, {key: value for key, value in state(run_directory, name).items() if key != "seconds"})
    return sha.hexdigest()


def metrics(run_directory: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without the fields of time."""
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def summary(run_directory: Path) -> dict[str, Any]:
    return dict(json.loads((run_directory / "summary.json").read_text()))


def half_written(run_directory: Path) -> list[Path]:
    return [path for path in run_directory.rglob("*") if ".tmp-" in path.name]


@functools.cache
def _start_server() -> None:
    """With this folder on its path, for warm.py."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _child(folder: Path, words: Sequence[str], faults: Sequence[Installable]) -> None:
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as python -m has it
    output = os.open("output.txt", os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for fault in faults:
        fault.install()
    from tinyexp.__main__ import main

    sys.exit(main(list(words)))


def _place(name: str) -> tuple[Any, str]:
    """The module or class, and the attribute's name."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[cut:-1], module), parts[-1]
    raise AssertionError(f"{name} leads nowhere")


def _spell(arguments: tuple[Any, ...]) -> str:
    """Arguments as text; an open file's number as its path."""
    spelled = []
    for argument in arguments:
        try:
            spelled.append(str(Path(f"/proc/self/fd/{argument}").readlink() if type(argument) is int else argument))
        except OSError:
            spelled.append(str(argument))
    return " ".join(spelled)


def _digest(sha: Any, value: Any, name: str = "") -> None:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            _digest(sha, value[key], f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _digest(sha, item, f"{name}.{position}")
    elif hasattr(value, "numpy"):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    else:
        sha.update(f"{name} {value!r}".encode())
