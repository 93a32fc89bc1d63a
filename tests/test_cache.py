"""What is made once is made by one process, however others end, and what has its name is whole."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import until

from tinyexp import cache
from tinyexp.cache import build_once
from tinyexp.errors import ResourceError, TinyexpError

CHILD = """
import json, logging, os, signal, sys, time
from pathlib import Path
from tinyexp import cache
from tinyexp.errors import TinyexpError

paths, given = sys.argv[2:], json.loads(sys.argv[1])
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
for name, value in given.get("constants", {}).items():
    setattr(cache, name, value)

def build(aside):
    with open("calls", "a") as file:
        file.write(aside.name.split(".")[1] + "\\n")
    try:
        os.close(os.open("busy", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        print("overlap", flush=True)
    (aside / "deep").mkdir(parents=True)
    (aside / "a").write_text("whole"[: given.get("written", 5)])
    time.sleep(given.get("seconds", 0))
    Path("busy").unlink(missing_ok=True)
    if given.get("fails"):
        raise ValueError("not today")
    (aside / "deep/b").write_text("whole")

def kill(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if "kill_at" in given:
    owner, name = given["kill_at"]
    setattr({"cache": cache, "os": os, "Path": Path}[owner], name, kill)
if given.get("go"):
    Path("go").open().close()
for path in map(Path, paths):
    try:
        print("made" if cache.build_once(path, build, "the images") else "there", flush=True)
    except ValueError as error:
        print(error, flush=True)
    except TinyexpError as error:
        sys.exit(str(error))
"""

WHOLE = {"a": "whole", "deep/b": "whole"}
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that builds `store/NAME` for each name, in tmp_path; what it is told is above."""
    children = []

    def started(*names: str, **given: Any) -> subprocess.Popen[str]:
        paths = [str(tmp_path / "store" / name) for name in names]
        command = [sys.executable, "-c", CHILD, json.dumps(given), *paths]
        pipe = subprocess.PIPE
        children.append(subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=subprocess.STDOUT, text=True))
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.communicate()


def ended(child: subprocess.Popen[str], seconds: float = 20) -> str:
    return child.communicate(timeout=seconds)[0]


def calls(folder: Path) -> Counter[str]:
    return Counter((folder / "calls").read_text().split()) if (folder / "calls").exists() else Counter()


def contents(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def write(aside: Path) -> None:
    aside.write_text("whole")


def write_folder(aside: Path) -> None:
    (aside / "deep").mkdir(parents=True)
    (aside / "a").write_text("whole")
    (aside / "deep/b").write_text("whole")


def refuse(aside: Path) -> None:
    raise AssertionError("built")


# many at once


def test_eight_at_once(tmp_path: Path, start: Start) -> None:
    os.mkfifo(tmp_path / "go")
    children = [start("images", go=True, seconds=0.3) for _ in range(8)]
    with (tmp_path / "go").open("w"):
        said = sorted(ended(child) for child in children)
    assert said == ["made\n"] + ["there\n"] * 7
    assert calls(tmp_path) == {"images": 1}
    assert names(tmp_path / "store") == {"images"}
    assert contents(tmp_path / "store/images") == WHOLE


def test_a_race_for_each_of_many(tmp_path: Path, start: Start) -> None:
    """The lock file comes and goes: no two may hold two files of its name, also where the path is not there after."""
    os.mkfifo(tmp_path / "go")
    given = {"go": True, "constants": {"_POLL": 0.001}, "seconds": 0.001}
    children = [start(*["images"] * 60, fails=True, **given) for _ in range(6)]
    with (tmp_path / "go").open("w"):
        said = [ended(child) for child in children]
    assert said == ["not today\n" * 60] * 6
    assert names(tmp_path / "store") == set()


def test_two_threads(tmp_path: Path) -> None:
    built, made = [], []

    def build(aside: Path) -> None:
        built.append(aside)
        time.sleep(0.3)
        write(aside)

    threads = [threading.Thread(target=lambda: made.append(build_once(tmp_path / "x", build, "it"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(made) == [False, True]
    assert len(built) == 1


def test_a_build_may_need_another(tmp_path: Path) -> None:
    def build(aside: Path) -> None:
        assert build_once(tmp_path / "archive", write, "it")
        shutil.copy(tmp_path / "archive", aside)

    assert build_once(tmp_path / "images", build, "it")
    assert names(tmp_path) == {"archive", "images"}


def test_a_forked_process_may_build(tmp_path: Path) -> None:
    """While a thread of its parent builds: the parent's thread is not in it, but what that one held would be."""
    code = (
        "import os, sys, threading, time; from pathlib import Path; from tinyexp.cache import build_once\n"
        "begun = threading.Event()\n"
        "def slow(aside): begun.set(); time.sleep(1); aside.touch()\n"
        "threading.Thread(target=build_once, args=(Path('slow'), slow, 'it')).start()\n"
        "begun.wait()\n"
        "child = os.fork()\n"
        "if not child: build_once(Path('quick'), Path.touch, 'it'); os._exit(7)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=10, check=False)
    assert done.returncode == 7
    assert names(tmp_path) == {"quick", "slow"}


# one who is killed or stopped


def test_killed_while_another_waits(tmp_path: Path, start: Start) -> None:
    first = start("images", seconds=60, written=2)
    until(lambda: any((tmp_path / "store").glob(".images.tmp-*/a")))
    second = start("images", constants={"_FIRST_NEWS": 0.0})
    assert second.stdout is not None
    assert f"waiting for process {first.pid} " in second.stdout.readline()
    first.kill()
    assert ended(second, 10).endswith("made\n")
    assert calls(tmp_path) == {"images": 2}
    assert names(tmp_path / "store") == {"images"}
    assert contents(tmp_path / "store/images") == WHOLE


@pytest.mark.parametrize("moments", [1, 2])
def test_killed_at_each_moment(tmp_path: Path, start: Start, moments: int) -> None:
    """Each in turn, on what the one before has left; and where it is killed twice there, too."""
    path = tmp_path / "store/images"
    for place in (("Path", "mkdir"), ("cache", "_beat"), ("cache", "_build"), ("os", "fsync"), ("Path", "rename")):
        for _ in range(moments):
            child = start("images", kill_at=place)
            ended(child)
            assert child.returncode == -signal.SIGKILL, place
            assert not path.exists()
    assert ended(start("images")) == "made\n"
    assert names(tmp_path / "store") == {"images"}
    assert contents(path) == WHOLE


def test_killed_when_it_is_made(tmp_path: Path, start: Start) -> None:
    child = start("images", kill_at=("cache", "_remove_lock"))
    ended(child)
    assert child.returncode == -signal.SIGKILL
    assert contents(tmp_path / "store/images") == WHOLE
    assert ended(start("images")) == "there\n"
    assert names(tmp_path / "store") == {"images"}  # its lock too is gone


def test_stopped(tmp_path: Path, start: Start) -> None:
    """One who waits says for whom, and gives up; the other is not harmed by that."""
    first = start("images", seconds=0.5, constants={"_BEAT": 0.1})
    until(lambda: any((tmp_path / "store").glob(".images.tmp-*/a")))
    first.send_signal(signal.SIGSTOP)
    second = start("images", constants={"_PATIENCE": 1.0, "_FIRST_NEWS": 0.2, "_NEWS": 0.4})
    said = ended(second)
    who = rf"process {first.pid} on {re.escape(socket.gethostname())}, which makes the images since \d{{4}}-\S+ [\d:]+"
    assert second.returncode == 1
    assert len(re.findall(rf"^waiting for {who}$", said, re.MULTILINE)) in (2, 3), said
    assert re.search(rf"^{who}, has given no sign of life for 1 s: end it with `kill -9 {first.pid}` on", said, re.M)
    assert "or give dataset.cache_dir=ANOTHER FOLDER" in said
    first.send_signal(signal.SIGCONT)
    assert ended(first) == "made\n"
    assert names(tmp_path / "store") == {"images"}


def test_slow_is_not_stopped(tmp_path: Path, start: Start) -> None:
    """Signs of life are waited for, and not the end; nor is a time when all were stopped held against the builder."""
    first = start("images", seconds=2.5, constants={"_BEAT": 0.1})
    until(lambda: any((tmp_path / "store").glob(".images.tmp-*/a")))
    second = start("images", constants={"_PATIENCE": 0.9, "_POLL": 0.02, "_FIRST_NEWS": 0.0})
    assert second.stdout is not None
    assert "waiting" in second.stdout.readline()
    for child in (first, second):
        child.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    for child in (second, first):
        child.send_signal(signal.SIGCONT)
        time.sleep(0.2)  # the first sign of life comes after some looks
    assert ended(second) == "there\n"
    assert ended(first) == "made\n"


# one that fails


@pytest.mark.parametrize("build", [write, write_folder])
@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken"), TinyexpError("words")], ids=repr
)
def test_failing_build(tmp_path: Path, build: Callable[[Path], None], error: BaseException) -> None:
    """What it raises passes, nothing is left, and the next one builds."""

    def fail(aside: Path) -> None:
        build(aside)
        raise error

    with pytest.raises(type(error)) as raised:
        build_once(tmp_path / "store/x", fail, "it")
    assert raised.value is error
    assert names(tmp_path / "store") == set()
    assert build_once(tmp_path / "store/x", build, "it")
    assert names(tmp_path / "store") == {"x"}


def test_a_build_that_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TinyexpError, match=r"x could not be made in .*: No such file"):
        build_once(tmp_path / "x", lambda aside: None, "it")
    assert names(tmp_path) == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_full(tmp_path: Path, number: int) -> None:
    def fail(aside: Path) -> None:
        write_folder(aside)
        raise OSError(number, os.strerror(number))

    told = rf"x could not be made in {tmp_path}: {os.strerror(number)}; make room there, or give dataset.cache_dir="
    with pytest.raises(ResourceError, match=told):
        build_once(tmp_path / "x", fail, "it")
    assert names(tmp_path) == set()


def test_full_disk(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    (tmp_path / "disk").mkdir()
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "disk"]
    if os.geteuid() or mount is None or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(ResourceError, match="No space left on device; make room"):
            build_once(tmp_path / "disk/x", lambda aside: bool(aside.write_bytes(bytes(2**21))), "it")
        assert names(tmp_path / "disk") == set()
        assert build_once(tmp_path / "disk/x", write, "it")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EIO, TinyexpError)], ids=["full", "broken"]
)
@pytest.mark.parametrize("name", ["os.fsync", "pathlib.Path.rename", "pathlib.Path.mkdir", "fcntl.lockf"])
def test_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[TinyexpError], name: str
) -> None:
    """The cache's own files: the system's words, the folder, and what would do."""

    def fail(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(name, fail)
        with pytest.raises(TinyexpError, match=f"made in {tmp_path}: {os.strerror(number)}; .*dataset.cache") as raised:
            build_once(tmp_path / "x", write, "it")
    assert type(raised.value) is kind
    assert names(tmp_path) <= {".x.lock"}  # where no lock can be had, it is not ours to remove
    assert build_once(tmp_path / "x", write, "it")
    assert names(tmp_path) == {"x"}


def test_another_setting_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TinyexpError, match=r"File exists; give a\.b=FOLDER$"):
        build_once(tmp_path / "file/x", refuse, "it", setting="a.b=FOLDER")


# one that is alone


@pytest.mark.parametrize("there", [write, write_folder])
def test_what_is_there_is_only_looked_at(tmp_path: Path, there: Callable[[Path], None]) -> None:
    there(tmp_path / "x")
    before = tmp_path.stat().st_mtime_ns
    assert not build_once(tmp_path / "x", refuse, "it")
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize(("build", "few", "first"), [(write, 100, 1), (write_folder, 100, 0), (write_folder, 1, 0)])
def test_flushed_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[[Path], None], few: int, first: int
) -> None:
    """And its name is flushed before any other process can take the lock; many files all at once."""
    monkeypatch.setattr(cache, "_FEW", few)
    events: list[tuple[str, bool, bool]] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            result = original(*arguments)
            events.append((name, (tmp_path / "x").exists(), (tmp_path / ".x.lock").exists()))
            return result

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((os, "fsync"), (os, "sync"), (cache, "_remove_lock")):
        watch(owner, name)
    build_once(tmp_path / "x", build, "it")
    files = first or len(list((tmp_path / "x").rglob("*")))
    flushed = [("fsync", False, True)] * files if first or files <= few else [("sync", False, True)]
    assert events == [*flushed, ("fsync", True, True), ("_remove_lock", True, False)]


def test_leftovers_of_the_dead_only(tmp_path: Path) -> None:
    """Those of another name too, whose key may never be asked for again; but not what somebody makes now."""
    write_folder(tmp_path / ".x.tmp-00000001")
    for name in (".x.tmp-00000002", ".y.tmp-00000001", ".y.lock", "x.tmp-00000001", ".check.json.tmp-17-4711"):
        write(tmp_path / name)
    write(tmp_path / ".notes.tmp-deadbeef")  # of another program: there is no lock of ours

    def build(aside: Path) -> None:
        write(aside)
        assert build_once(tmp_path / "inner", write, "it")
        assert aside.exists()

    assert build_once(tmp_path / "x", build, "it")
    assert names(tmp_path) == {"x", "inner", "x.tmp-00000001", ".check.json.tmp-17-4711", ".notes.tmp-deadbeef"}


def test_what_another_process_makes_is_left(tmp_path: Path, start: Start) -> None:
    child = start("images", seconds=0.5)
    until(lambda: any((tmp_path / "store").glob(".images.tmp-*/a")))
    assert build_once(tmp_path / "store/other", write, "it")
    assert ended(child) == "made\n"
    assert names(tmp_path / "store") == {"images", "other"}


def test_the_lock_of_another_is_left(tmp_path: Path) -> None:
    """Where a user has removed the folder amid a build, and another process has begun there anew."""

    def build(aside: Path) -> None:
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "store").mkdir()
        write(tmp_path / "store/.x.lock")
        write(aside)

    assert build_once(tmp_path / "store/x", build, "it")
    assert names(tmp_path / "store") == {"x", ".x.lock"}


def test_the_lock_names_who_holds_it(tmp_path: Path) -> None:
    """Also where one who was killed has left it."""
    (tmp_path / ".x.lock").write_text(json.dumps({"host": "far", "pid": 1, "start": "long ago" * 20}))
    owners = []

    def build(aside: Path) -> None:
        owners.append(json.loads((tmp_path / ".x.lock").read_text()))
        write(aside)

    assert build_once(tmp_path / "x", build, "it")
    assert [(owner["host"], owner["pid"]) for owner in owners] == [(socket.gethostname(), os.getpid())]
    assert names(tmp_path) == {"x"}
