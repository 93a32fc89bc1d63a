"""Writing so that a file under its final name is whole: aside, flushed, then renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tinyexp.errors import ResourceError, TinyexpError

_MARK = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_aside(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when all of it is on the disk; on any error nothing has changed.

    What had the name before is kept as `previous`, if that is given.

    Raises:
        ResourceError: the disk or the quota is full.
        TinyexpError: another refusal of the system, by its words.
    """
    aside = path.with_name(f".{path.name}{_MARK}{os.getpid()}-{threading.get_ident()}")  # each writer has its own
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            _keep(path, previous)
        aside.replace(path)
        flush(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        told = f"{path} could not be written: {error.strerror}. What stood there before is as it was"
        raise refusal(told, error, TinyexpError) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def refusal(message: str, error: OSError, kind: type[TinyexpError]) -> TinyexpError:
    """What to raise for the system's error: this kind, but ResourceError where the disk or the quota is full."""
    return (ResourceError if error.errno in _FULL else kind)(message)


def write_text(path: Path, text: str) -> None:
    """Raises as written_aside."""
    with written_aside(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Raises as written_aside."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def make_unique(root: Path, name: str) -> Path:
    """root/DATE_TIME_name_ID: sorted by time, and one of its own for each of fifty runs of one second."""
    while True:
        path = root / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}_{secrets.token_hex(2)}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not root.is_dir():
                raise
        else:
            return path


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder of ours."""
    for path in folder.glob(f".*{_MARK}*"):
        path.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that at no instant is there none of the first."""
    link = previous.with_name(f".{previous.name}{_MARK}{os.getpid()}")
    try:
        link.hardlink_to(path)
    except OSError:  # a file system without them
        path.replace(previous)
        return
    try:
        link.replace(previous)
    finally:
        link.unlink(missing_ok=True)  # it is still there where both were one file already, too


def flush(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk: without it, a power loss may undo them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
