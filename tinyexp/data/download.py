"""Files that are fetched once, into the cache; what they must be is checked by who fetches."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

from tinyexp.cache import build_once
from tinyexp.errors import DataError, NotFetchedError

_PATIENCE = 20.0  # s without an answer: a firewall that swallows packets would hold a download for minutes

log = logging.getLogger(__name__)


def from_torchvision(name: str, folder: Path, inside: str, *, fetch: bool, cure: str) -> None:
    """torchvision's data set of this name, whose files it keeps in `inside`, as `folder`; at most once.

    Raises:
        DataError: no network; the message ends with `cure`, what else would do.
        NotFetchedError: it is not there, and may not be fetched now.
    """

    def build(aside: Path) -> None:
        from torchvision import datasets  # takes a second, and few runs need it

        fetched = aside / "fetched"  # in the folder that goes, whatever happens
        fetched.mkdir(parents=True)
        getattr(datasets, name)(fetched, download=True)
        for path in (fetched / inside).iterdir():
            path.rename(aside / path.name)
        shutil.rmtree(fetched)

    _fetch(name, folder, build, fetch=fetch, cure=cure)


def from_url(url: str, md5: str, path: Path, *, fetch: bool, cure: str) -> None:
    """The file at `url` as `path`, whose content must have this checksum. Raises as `from_torchvision`."""

    def build(aside: Path) -> None:
        from torchvision.datasets.utils import download_url

        download_url(url, aside.parent, aside.name, md5)

    _fetch(path.name, path, build, fetch=fetch, cure=cure)


def _fetch(name: str, path: Path, build: Callable[[Path], None], *, fetch: bool, cure: str) -> None:
    if path.exists():
        return
    if not fetch:
        raise NotFetchedError(f"{name} is not here yet; a run, or `python -m tinyexp prepare`, downloads it to {path}")
    log.info("downloading %s to %s", name, path)

    def build_patiently(aside: Path) -> None:
        with _patient():  # of the whole process: in here, where build_once lets in one thread
            build(aside)

    try:
        build_once(path, build_patiently, what=f"the download of {name}")
    except (OSError, RuntimeError, HTTPException) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{name} is not here; {cure} or a download to {path}, which failed now: {told}") from error


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints its progress; stdout is for results
            yield
    finally:
        socket.setdefaulttimeout(before)
