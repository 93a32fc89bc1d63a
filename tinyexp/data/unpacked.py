"""A data set's archive, unpacked once into a folder that says which archive it is of."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from tinyexp.cache import build_once
from tinyexp.data.archive import sha256, unpack
from tinyexp.data.progress import bar
from tinyexp.errors import DataError, NotFetchedError

_MARK = ".archive.json"  # hidden, so that no listing of images sees it

log = logging.getLogger(__name__)


def unpack_once(
    archive: Path,
    folder: Path,
    *,
    fetch: bool,
    place: Callable[[str], str | None] = str,
    arrange: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Make `folder` of the archive's files, unless it is there; killed at any moment, it is whole or not there.

    Args:
        fetch: whether it may be unpacked now.
        place: a member's path below the folder, or None to leave it out.
        arrange: what else is to be done with the files, before the folder gets its name.

    Raises:
        DataError: no such archive, one that is refused, or a folder that is of another one.
        NotFetchedError: it would have to be unpacked.
    """
    if not archive.is_file():
        raise DataError(f"dataset.archive={archive} is not a file: give the path of a .zip or .tar")
    if folder.exists():
        _check_same(archive, folder)
        return
    if not fetch:
        raise NotFetchedError(
            f"{archive} is not unpacked yet; a run, or `python -m tinyexp prepare`, unpacks it to {folder}"
        )

    def build(aside: Path) -> None:
        with bar(f"unpacking {archive.name}") as show:
            unpack(archive, aside, place, show)
        try:
            arrange(aside)
        except DataError as error:  # the files that it names are removed: they are to be looked for in the archive
            raise DataError(str(error).replace(str(aside), str(archive))) from error
        (aside / _MARK).write_text(json.dumps(_identity(archive) | {"sha256": sha256(archive)}))

    start = time.monotonic()
    if build_once(folder, build, what=f"the unpacked {archive.name}"):
        log.info("unpacked %s to %s in %.1f s", archive, folder, time.monotonic() - start)


def _identity(archive: Path) -> dict[str, object]:
    status = archive.stat()
    return {"name": archive.name, "size": status.st_size, "changed": status.st_mtime_ns}


def _check_same(archive: Path, folder: Path) -> None:
    try:
        mark = json.loads((folder / _MARK).read_bytes())
        same = _identity(archive).items() <= mark.items() or mark["sha256"] == sha256(archive)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{folder} is there already and was not unpacked from dataset.archive={archive}: leave dataset.archive out "
            "to use it as it is, or give another dataset.root"
        ) from None
    if not same:
        raise DataError(
            f"{folder} was unpacked from another archive than {archive}: remove it, or give another dataset.root"
        )
