"""Build once, then share: a file or folder of a cache, made by one process while all others wait for it.

A build that is killed stands in nobody's way: the system drops its lock, and who comes next removes what it left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

from tinyexp.errors import ResourceError, TinyexpError
from tinyexp.files import flush, refusal

_FEW = 100  # files that are flushed one by one
_POLL = 0.1  # seconds between two looks at a lock that another process holds
_BEAT = 2.0  # seconds between two signs of life of the one who builds
_PATIENCE = 60.0  # seconds without a sign of life, after which one who waits gives up
_FIRST_NEWS, _NEWS = 2.0, 30.0  # seconds of waiting until it is told, and told again

_ASIDE = re.compile(r"\.(.+)\.tmp-[0-9a-f]{8}")

_log = logging.getLogger(__name__)
_building: set[Path] = set()  # by this process
_mutex = threading.RLock()  # lockf does not part the threads of one process; a build may need another one


def build_once(
    path: Path, build: Callable[[Path], None], what: str, *, setting: str = "dataset.cache_dir=ANOTHER FOLDER"
) -> bool:
    """Make `path`, a file or a folder, unless it is there; it takes its name when all of it is on the disk.

    Args:
        build: gets a path in the same folder, where nothing is yet, and makes the file or folder there. It runs with
            the lock held; threads that it starts must not build.
        what: is being made, in words, for those who wait.
        setting: that would name another folder, for the messages.

    Returns:
        Whether this call made it.

    Raises:
        ResourceError: the disk or the quota is full.
        TinyexpError: another refusal of the system by its words, or the process that builds gives no sign of life.
        Exception: what `build` raises passes as it is, but for a full disk; nothing is left behind.
    """
    with _told(path, setting):
        if path.exists():
            if _lock_of(path).exists():
                _remove_dead_lock(path)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
    with _mutex, _locked(path, what, setting):
        with _told(path, setting):
            if path.exists():
                return False
            _clear(path)
        aside = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}")
        _building.add(path)
        try:
            _build(build, aside, path, setting)
            with _told(path, setting):
                _flush_all(aside)
                aside.rename(path)
                flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                _remove(aside)
            raise
        finally:
            _building.discard(path)
    return True


def _clear(path: Path) -> None:
    """Remove what killed builders left in this folder, whatever they built: another key may never be built again.

    Of another name only where its lock was left too: the folder may be the user's own.
    """
    for left in path.parent.iterdir():
        if match := _ASIDE.fullmatch(left.name):
            if match[1] == path.name:
                _remove(left)
            elif _remove_dead_lock(path.with_name(match[1])):
                with contextlib.suppress(OSError):
                    _remove(left)


def _remove_dead_lock(path: Path) -> bool:
    """Remove the lock that a killed process left; returns whether there was one."""
    if path in _building:  # lockf would let us have our own lock, and closing the file would drop it
        return False
    lock = _lock_of(path)
    try:
        with lock.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_lock(file, lock)
    except OSError:  # there is none, or somebody holds it
        return False
    return True


def _build(build: Callable[[Path], None], aside: Path, path: Path, setting: str) -> None:
    try:
        build(aside)
    except OSError as error:
        full = _refusal(path, setting, error)
        if isinstance(full, ResourceError):
            raise full from error
        raise


@contextlib.contextmanager
def _told(path: Path, setting: str) -> Iterator[None]:
    """What the system refuses the cache's own files, as a TinyexpError."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, setting, error) from error


def _refusal(path: Path, setting: str, error: OSError) -> TinyexpError:
    told = f"{path.name} could not be made in {path.parent}: {error.strerror or error}"
    kind = type(refusal(told, error, TinyexpError))
    return kind(f"{told}; {'make room there, or ' if kind is ResourceError else ''}give {setting}")


@contextlib.contextmanager
def _locked(path: Path, what: str, setting: str) -> Iterator[None]:
    """Hold the lock file beside `path`, with signs of life; it is removed while held, so that no one locks a ghost."""
    lock = _lock_of(path)
    wait = _Wait(what, setting)
    with contextlib.ExitStack() as at_end:
        with _told(path, setting):
            while (file := _try_lock(lock, wait)) is None:
                pass
            at_end.callback(file.close)
            at_end.callback(_remove_lock, file, lock)
            start = time.strftime("%Y-%m-%d %H:%M:%S")
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": start}))
            file.flush()
        ended = threading.Event()
        heart = threading.Thread(target=_beat, args=(file.fileno(), ended), daemon=True)
        heart.start()
        at_end.callback(heart.join)
        at_end.callback(ended.set)
        yield


def _try_lock(lock: Path, wait: _Wait) -> TextIO | None:
    """The lock file, held; or None after a pause, since another process has it."""
    file = lock.open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(file, lock):
            return file
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            file.close()
            raise
        wait.pause(file)
    file.close()
    return None


def _is_current(file: TextIO, lock: Path) -> bool:
    """Whether it still is the one of that name: its holder may have removed it after we opened it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    except FileNotFoundError:
        return False


def _remove_lock(file: TextIO, lock: Path) -> None:
    with contextlib.suppress(OSError):  # one that nobody holds is in nobody's way
        if _is_current(file, lock):
            lock.unlink()


class _Wait:
    """What one who waits has seen of the one who builds."""

    def __init__(self, what: str, setting: str) -> None:
        self._what, self._setting = what, setting
        self._sign = (0, 0)
        self._silent = 0.0  # seconds
        self._seen = time.monotonic()
        self._next_news = self._seen + _FIRST_NEWS

    def pause(self, file: TextIO) -> None:
        """Raises TinyexpError where no sign of life has come for too long."""
        status, now = os.fstat(file.fileno()), time.monotonic()
        sign = status.st_ino, status.st_mtime_ns  # a value to compare: the clocks of two hosts differ
        # a long pause was our own: we were stopped, and the builder perhaps with us
        self._silent = self._silent + min(now - self._seen, 10 * _POLL) if sign == self._sign else 0.0
        self._sign, self._seen = sign, now
        if self._silent > _PATIENCE:
            process, start, cure = _read_owner(file)
            raise TinyexpError(
                f"{process}, which makes {self._what} since {start}, has given no sign of life for "
                f"{self._silent:.0f} s: {cure}, or give {self._setting}"
            )
        if now >= self._next_news:
            self._next_news = now + _NEWS
            process, start, _ = _read_owner(file)
            _log.info("waiting for %s, which makes %s since %s", process, self._what, start)
        time.sleep(_POLL)


def _read_owner(file: TextIO) -> tuple[str, str, str]:
    """Who holds the lock, since when, and how to end it."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
        process = f"process {owner['pid']} on {owner['host']}"
        return process, str(owner["start"]), f"end it with `kill -9 {owner['pid']}` on {owner['host']}"
    except (ValueError, KeyError, TypeError):  # it has just taken the lock
        return "another process", "just now", "end it"


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush_all(path: Path) -> None:
    files = [path] if path.is_file() else list(islice(path.rglob("*"), _FEW + 1))
    if len(files) > _FEW:
        os.sync()  # to flush each of 100,000 files takes minutes
    else:
        for file in files:
            flush(file)


def _begin_anew() -> None:
    """A forked process has none of the threads that might hold the mutex, and none of the locks."""
    global _mutex
    _mutex = threading.RLock()
    _building.clear()


os.register_at_fork(after_in_child=_begin_anew)
