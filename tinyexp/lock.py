"""One writer for a run directory: a lock that the system drops when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from tinyexp.errors import ConfigError


class DirectoryLock:
    """Held from `take` to `release`.

    lockf, since it is not inherited by forked loader processes, which may outlive us; the file stays, since removing
    it would let two processes lock two files of one name.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ".lock"
        self._directory = directory
        self._file = self._path.open("a+")

    def take(self) -> None:
        """Raises ConfigError naming the process that writes there now."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            owner = _owner(self._file.read())
            self._file.close()
            raise ConfigError(
                f"{self._directory} is being written by {owner}: two runs never share a directory"
            ) from error
        self._file.truncate(0)
        start = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": start}))
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def is_held(directory: Path) -> bool:
    """Does a process write there now? Not to be asked by that process itself: closing the file would drop its lock.

    A lock that cannot be looked at counts as held.
    """
    try:
        with (directory / ".lock").open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not disturb each other
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _owner(text: str) -> str:
    try:
        owner = json.loads(text)
        return f"process {owner['pid']} on {owner['host']} since {owner['start']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
