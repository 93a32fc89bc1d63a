"""Machines made of this one: network namespaces, each with a name, an address, a hosts file and a folder of its own.

They share the disk, /tmp, /dev/shm and the process numbers. `kill(n)` ends a machine's processes, and the kernel closes
their connections; with `disconnect(n)` before it nothing is heard of it any more, as after a power cut.
"""

from __future__ import annotations

import functools
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"tinyexp-(?P<maker>\d+)-[0-9a-f]{8}-\w+")  # of a namespace; the maker is a process number
ETC = Path("/etc/netns")  # `ip netns exec NAME` puts the files of /etc/netns/NAME over those of /etc
_ENTER = 'hostname "$1" && shift && exec "$@" {}>&-'


@functools.cache
def reason_not_here() -> str | None:
    """Why there can be no Hosts on this machine; None where there can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"{_new_name()}-probe"
    try:
        _call("bash --version")
        with ExitStack() as undo:
            _call(f"ip netns add {name}")
            undo.callback(_remove, name)
            _call(f"ip -n {name} link add br0 type bridge")
            _call(f"ip -n {name} link add port0 type veth peer name port1")
            _call(f"ip netns exec {name} unshare --uts hostname node0")
    except OSError as error:
        return f"no network namespaces here: {error}"
    return None


@dataclass(frozen=True)
class Process:
    """A command on a host, in a session of its own; all that it prints goes to the file `log`."""

    host: int
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        assert self.alive, f"ended before {number.name} was sent:\n{self.output()}"
        self.popen.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """Its exit code, or minus the signal that killed it. AssertionError if still running; it is left so."""
        with suppress(subprocess.TimeoutExpired):
            return self.popen.wait(timeout)
        raise AssertionError(f"still on node{self.host} after {timeout} s:\n{self.output()}")


class Hosts:
    """`with Hosts(folder) as hosts:` makes node0, node1, ... at 10.77.0.1, 10.77.0.2, ...; after it nothing is left.

    A bridge in a namespace of its own joins them, so that none of their links is ever among this machine's.
    """

    def __init__(self, folder: Path, count: int = 2) -> None:
        name = _new_name()
        self._root, self._names, self._switch = folder, [f"{name}-{n}" for n in range(count)], f"{name}-switch"
        self._started: list[Process] = []

    def folder(self, n: int) -> Path:
        """The host's home and working directory."""
        return self._root / f"node{n}"

    def __enter__(self) -> Hosts:
        _remove_orphans()
        nodes = "".join(f"10.77.0.{n + 1} node{n}\n" for n in range(len(self._names)))
        with ExitStack() as undo:
            for name in (self._switch, *self._names):
                undo.callback(_remove, name)
                _call(f"ip netns add {name}")
                _call(f"ip -n {name} link set lo up")
            _call(f"ip -n {self._switch} link add br0 up type bridge")
            for n, name in enumerate(self._names):
                _call(f"ip -n {self._switch} link add port{n} type veth peer name eth0 netns {name}")
                _call(f"ip -n {self._switch} link set port{n} master br0 up")
                _call(f"ip -n {name} addr add 10.77.0.{n + 1}/24 dev eth0")
                _call(f"ip -n {name} link set eth0 up")
                (ETC / name).mkdir(parents=True)
                (ETC / name / "hosts").write_text(f"127.0.0.1 localhost\n{nodes}")
                self.folder(n).mkdir(parents=True, exist_ok=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        for process in self._started:
            process.wait()

    def start(
        self, n: int, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        """Start a command on host n; `env` is added to this process's environment, HOME and OMP_NUM_THREADS=1.

        By its return the process has become the command: every program before it in the chain replaces itself.
        """
        home, log = self.folder(n), self._root / f"node{n}-{len(self._started)}.txt"
        reading, writing = os.pipe()  # at its end when the last program before the command has gone
        chain = ["ip", "netns", "exec", self._names[n], "unshare", "--uts", "bash", "-c", _ENTER.format(writing)]
        with os.fdopen(reading) as before, os.fdopen(writing, "w") as held, log.open("wb") as output:
            popen = subprocess.Popen(
                [*chain, "bash", f"node{n}", *command],
                cwd=cwd or home,
                env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[writing],
            )
            self._started.append(Process(n, popen, log))
            held.close()
            before.read()
        return self._started[-1]

    def pids(self, n: int) -> list[int]:
        """Every process of host n, whoever started it."""
        return _pids(self._names[n])

    def kill(self, n: int) -> None:
        """The machine is lost: SIGKILL to all its processes; they have ended by the return. It may start others."""
        _kill(self._names[n])

    def disconnect(self, n: int) -> None:
        """Pull its cable out of the switch: no packet comes through, and neither side is told."""
        _call(f"ip -n {self._switch} link set port{n} down")

    def connect(self, n: int) -> None:
        _call(f"ip -n {self._switch} link set port{n} up")

    def until_gone(self, n: int, timeout: float) -> list[str]:
        """Wait until host n has no process; the command lines of those still there after so many seconds."""
        end = time.monotonic() + timeout
        while self.pids(n) and time.monotonic() < end:
            time.sleep(0.05)
        return [_command_line(pid) for pid in self.pids(n)]


def _new_name() -> str:
    return f"tinyexp-{os.getpid()}-{secrets.token_hex(4)}"


def _call(command: str, *, check: bool = True) -> str:
    """What the command prints. Raises OSError with its complaint where it fails."""
    done = subprocess.run(command.split(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise OSError(f"{command}: {done.stderr.strip()}")
    return done.stdout


def _remove_orphans() -> None:
    """What a maker left that was killed, with the processes in it."""
    for word in (*_call("ip netns list").split(), *(path.name for path in ETC.glob("*"))):
        if (made := NAME.fullmatch(word)) and not _lives(int(made["maker"])):
            _remove(word)


def _remove(name: str) -> None:
    """Whatever there is of it, the name last, by which it is found; others may be removing it too."""
    _kill(name)
    shutil.rmtree(ETC / name, ignore_errors=True)
    _call(f"ip netns del {name}", check=False)


def _pids(name: str) -> list[int]:
    return [pid for pid in map(int, _call(f"ip netns pids {name}", check=False).split()) if _lives(pid)]


def _kill(name: str, seconds: float = 20) -> None:
    """Until none is left, for one may have forked before it was hit."""
    end, hit = time.monotonic() + seconds, set[int]()
    while (here := _pids(name)) or any(map(_lives, hit)):
        for pid in here:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        hit.update(here)  # a process leaves its namespace a little before it closes its files
        if time.monotonic() > end:
            raise TimeoutError(f"processes in {name} outlive SIGKILL by {seconds} s: {sorted(hit)}")
        time.sleep(0.005)


def _lives(pid: int) -> bool:
    """Whether any of its threads does: the first of them may end before the others, and then is a zombie."""
    with suppress(FileNotFoundError, ProcessLookupError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return state not in "ZX" or int(numbers[16]) > 1  # their number
    return False


def _command_line(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return f"process {pid}, which has just ended"
