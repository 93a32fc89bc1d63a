"""What a rank leaves in its files is there however it ended, and a supervisor reads no more than what is whole."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import until

from tinyexp.heartbeat import FOLDER, Heartbeat, Sign, local_rank, rank_tag, read_report, read_signs, report

RANK = """
import os, signal
from tinyexp.heartbeat import Heartbeat, report
heartbeat = Heartbeat.of_rank(3)
report("rank-3", {"code": 7})
heartbeat.beat()
heartbeat.reached(17)
os.kill(os.getpid(), signal.SIGKILL)
"""
PARENT = """
import subprocess, sys, time
script = "import time; from tinyexp.heartbeat import end_with_parent; end_with_parent(); print('up'); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-uc", script], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has started another, and that one's number."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process, child
        finally:
            process.kill()
            if lives(child):
                os.kill(child, signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def test_the_last_step_outlives_its_writer(folder: Path) -> None:
    process = subprocess.run([sys.executable, "-c", RANK], check=False, timeout=20)
    assert process.returncode == -signal.SIGKILL
    (sign,) = read_signs(folder)
    assert (sign.rank, sign.step, sign.beats) == (3, 17, 2)
    assert read_report(folder, "rank-3") == {"code": 7}


def test_signs_are_seen_while_the_rank_lives(folder: Path) -> None:
    heartbeat = Heartbeat.of_rank(0)
    assert read_signs(folder) == [Sign(rank=0, pid=os.getpid(), beats=1, step=0)]
    heartbeat.reached(5)
    assert read_signs(folder)[0].step == 5
    heartbeat.beat()
    assert read_signs(folder) == [Sign(rank=0, pid=os.getpid(), beats=2, step=5)]


def test_another_attempt_begins_anew(folder: Path) -> None:
    Heartbeat.of_rank(0).reached(9)
    Heartbeat.of_rank(0)
    assert read_signs(folder) == [Sign(rank=0, pid=os.getpid(), beats=1, step=0)]


def test_ranks_come_in_order_and_what_is_half_made_is_left_out(folder: Path) -> None:
    for rank in (10, 2, 0):
        Heartbeat.of_rank(rank)
    (folder / "rank-1").touch()  # opened, and not yet of its size
    (folder / "rank-3").write_bytes(bytes(24))  # of its size, and nothing in it
    (folder / "rank-4").write_bytes(struct.pack("<qq", 1, 1))
    report("rank-0", {"code": 0})
    (folder / ".rank-5.json.tmp-1-1").write_text("{")
    assert [sign.rank for sign in read_signs(folder)] == [0, 2, 10]


def test_a_folder_that_is_gone_has_no_signs(tmp_path: Path) -> None:
    assert read_signs(tmp_path / "nowhere") == []


def test_a_report_replaces_the_one_before(folder: Path) -> None:
    report("run", {"directory": "a", "more": 1})
    report("run", {"directory": "b"})
    assert read_report(folder, "run") == {"directory": "b"}
    assert [path.name for path in folder.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", '{"code": ', "[1, 2]", "\x00\xff"])
def test_a_report_that_is_no_report_says_nothing(folder: Path, content: str) -> None:
    assert read_report(folder, "rank-0") == {}
    (folder / "rank-0.json").write_text(content)
    assert read_report(folder, "rank-0") == {}


def test_a_report_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "removed"))
    report("rank-0", {"code": 0})
    assert not list(tmp_path.iterdir())


def test_without_a_supervisor_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    heartbeat = Heartbeat.of_rank(0)
    heartbeat.beat()
    heartbeat.reached(4)
    report("rank-0", {"code": 0})
    assert heartbeat.step == 4
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the system kills a child with its parent on Linux alone")
def test_a_process_ends_with_the_one_that_started_it(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    time.sleep(0.1)
    assert lives(child)
    process.kill()
    until(lambda: not lives(child), 5)


def test_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (rank_tag(), local_rank()) == ("", 0)
    monkeypatch.setenv("RANK", "0")
    assert rank_tag() == ""
    monkeypatch.setenv("RANK", "11")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("socket.gethostname", lambda: "far")
    assert (rank_tag(), local_rank()) == (" [rank 11 on far]", 3)
