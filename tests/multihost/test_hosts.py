"""The machines of hosts.py are two to all that runs on them, can be lost in each way there is, and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hosts as module
import pytest
from faults import until
from hosts import Hosts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_namespaces")]

SLEEP = ["sleep", "600"]
NAMES = """
import os, socket
print(socket.gethostname(), *(socket.gethostbyname(f"node{n}") for n in range(3)))
print(os.environ["HOME"], os.environ["OMP_NUM_THREADS"], os.environ.get("WORD"), os.getcwd())
"""
ANSWER = """
import socket, sys
with socket.create_server(("", 29500)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    with connection:
        while got := connection.recv(1):
            connection.sendall(sys.argv[1].encode())
"""
ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 29500)) as connection:
    while True:
        connection.sendall(b"?")
        print(connection.recv(1).decode(), end="", flush=True)
        time.sleep(0.02)
"""
HANDLER = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
print("ready", flush=True)
time.sleep(60)
"""
ALL_REDUCE = """
import os, socket, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()} on {socket.gethostname()}: {total.item()}")
dist.destroy_process_group()
"""
LOST = """
import sys, time
from pathlib import Path
from hosts import Hosts
with Hosts(Path(sys.argv[1])) as hosts:
    print(hosts.start(1, ["sleep", "600"]).pid, flush=True)
    time.sleep(600)
"""


def python(script: str, *words: str) -> list[str]:
    return [sys.executable, "-c", script, *words]


def left(maker: int) -> list[str]:
    """The namespaces and their folders that the process made, and this machine's links."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    names = [*spaces, *(path.name for path in module.ETC.glob("*"))]
    links = [path.name for path in Path("/sys/class/net").iterdir()]
    return sorted(name for name in names if name.startswith(f"tinyexp-{maker}-")) + sorted(links)


@pytest.fixture
def _leaves_nothing() -> Iterator[None]:
    before = left(os.getpid())
    yield
    assert left(os.getpid()) == before


def test_each_has_its_name_and_knows_the_others(tmp_path: Path) -> None:
    with Hosts(tmp_path, 3) as hosts:
        started = [hosts.start(n, python(NAMES), env={"WORD": f"word {n}"}) for n in range(3)]
        for n, process in enumerate(started):
            assert process.wait() == 0, process.output()
            home = tmp_path / f"node{n}"
            assert process.output().splitlines() == [
                f"node{n} 10.77.0.1 10.77.0.2 10.77.0.3",
                f"{home} 1 word {n} {home}",
            ]


def test_a_connection_is_silent_while_cut_and_goes_on_after(hosts: Hosts) -> None:
    server = hosts.start(1, python(ANSWER, "!"))
    until(lambda: "listening" in server.output())
    client = hosts.start(0, python(ASK, "node1"))
    until(lambda: len(client.output()) > 5)

    hosts.disconnect(1)
    time.sleep(0.1)  # for an answer on its way
    before = client.output()
    time.sleep(0.7)
    assert client.output() == before
    assert client.alive
    assert server.alive

    hosts.connect(1)
    until(lambda: len(client.output()) > len(before) + 5)
    assert set(client.output()) == {"!"}


def test_the_pid_is_the_commands_own(hosts: Hosts) -> None:
    process = hosts.start(1, SLEEP)
    assert Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x00600\x00"
    assert os.getsid(process.pid) == process.pid
    assert (hosts.pids(0), hosts.pids(1)) == ([], [process.pid])


def test_a_signal_reaches_the_command(hosts: Hosts) -> None:
    process = hosts.start(0, python(HANDLER))
    until(lambda: "ready" in process.output())
    process.send(signal.SIGUSR1)
    assert process.wait() == 3
    assert not process.alive
    sleep = hosts.start(0, SLEEP)
    sleep.send(signal.SIGTERM)
    assert sleep.wait() == -signal.SIGTERM


def test_a_command_that_is_not_there_says_so(hosts: Hosts) -> None:
    process = hosts.start(0, ["nonesuch"])
    assert process.wait() == 127
    assert "nonesuch" in process.output()


def test_a_wait_that_is_too_long_shows_the_output(hosts: Hosts) -> None:
    process = hosts.start(0, ["bash", "-c", "echo here I am; sleep 600"])
    until(lambda: "here" in process.output())
    with pytest.raises(AssertionError, match="still on node0 after 0\\.1 s:\nhere I am"):
        process.wait(0.1)
    assert process.alive


def test_a_lost_machine_has_no_process_left_and_may_come_back(hosts: Hosts) -> None:
    other = hosts.start(0, SLEEP)
    agent = hosts.start(1, ["bash", "-c", "setsid sleep 600 & (sleep 600 &) ; trap '' TERM; sleep 600; true"])
    until(lambda: len(hosts.pids(1)) == 4)
    pids = hosts.pids(1)
    assert agent.pid in pids

    hosts.kill(1)
    assert hosts.pids(1) == []
    assert not any(map(module._lives, pids))
    assert agent.wait(0) == -signal.SIGKILL
    assert other.alive

    assert hosts.start(1, ["true"]).wait() == 0


def test_what_is_not_gone_is_named(hosts: Hosts) -> None:
    assert hosts.until_gone(0, timeout=0) == []
    hosts.start(0, ["sleep", "0.3"])
    assert hosts.until_gone(0, timeout=0) == ["sleep 0.3"]
    assert hosts.until_gone(0, timeout=20) == []


@pytest.mark.usefixtures("_leaves_nothing")
def test_nothing_is_left_by_a_test_that_fails(tmp_path: Path) -> None:
    def fail(hosts: Hosts) -> None:
        hosts.start(0, SLEEP)
        hosts.start(1, ["bash", "-c", "setsid sleep 600 & exec sleep 600"])
        until(lambda: len(hosts.pids(1)) == 2)
        pids.extend(hosts.pids(0) + hosts.pids(1))
        assert len(left(os.getpid())) == before + 5  # three namespaces and two folders
        raise ZeroDivisionError

    before, pids = len(left(os.getpid())), list[int]()
    with pytest.raises(ZeroDivisionError), Hosts(tmp_path) as hosts:
        fail(hosts)
    assert len(pids) == 3
    assert not any(map(module._lives, pids))


@pytest.mark.usefixtures("_leaves_nothing")
def test_nothing_is_left_by_a_setup_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._call

    def call(command: str, *, check: bool = True) -> str:
        done = original(command, check=check)
        if check and " ".join(command.split()[-2:]) == last:
            raise OSError(command)
        return done

    monkeypatch.setattr(module, "_call", call)
    for last in ("lo up", "type bridge", "br0 up", "eth0 up"):
        with pytest.raises(OSError, match=last), Hosts(tmp_path):
            pytest.fail("it was made")


@pytest.mark.usefixtures("_leaves_nothing")
def test_a_killed_maker_is_tidied_up_after(tmp_path: Path) -> None:
    path, links = str(Path(module.__file__).parent), len(left(-1))
    maker = subprocess.Popen(
        python(LOST, str(tmp_path)), stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    with maker:
        try:
            assert maker.stdout is not None
            pid = int(maker.stdout.readline())
            with Hosts(tmp_path / "others"):
                assert len(left(maker.pid)) == links + 5  # it lives
                assert module._lives(pid)
        finally:
            maker.kill()
    (module.ETC / f"tinyexp-{maker.pid}-00000000-0").mkdir()  # what outlives a restart
    with Hosts(tmp_path / "after"):
        assert len(left(maker.pid)) == links
        assert not module._lives(pid)


def test_two_pairs_at_once_do_not_meet(tmp_path: Path) -> None:
    with Hosts(tmp_path / "a") as a, Hosts(tmp_path / "b") as b:
        for letter, hosts in (("a", a), ("b", b)):
            server = hosts.start(0, python(ANSWER, letter))
            until(lambda server=server: "listening" in server.output())
        clients = [hosts.start(1, python(ASK, "node0")) for hosts in (a, b)]
        until(lambda: all(client.output() for client in clients))
        a.kill(0)
        assert clients[0].wait() == 1  # a closed connection
        assert [set(client.output()[:1]) for client in clients] == [{"a"}, {"b"}]
        assert clients[1].alive


def test_torchrun_makes_one_job_of_two(hosts: Hosts, tmp_path: Path) -> None:
    script = tmp_path / "all_reduce.py"
    script.write_text(ALL_REDUCE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    where = ["--master-addr=node0", "--master-port=29500", str(script)]
    agents = [hosts.start(n, [*torchrun, f"--node-rank={n}", *where]) for n in (0, 1)]
    for n, agent in enumerate(agents):
        assert agent.wait() == 0, agent.output()
        assert f"rank {n} of 2 on node{n}: 3.0" in agent.output()
        assert hosts.until_gone(n, timeout=0) == []
