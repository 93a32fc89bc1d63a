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
    if folder.exists() and not archive.exists() and _read_mark(folder).get("name") == archive.name:
        log.info("dataset.archive=%s is not here, and was unpacked to %s: that is taken", archive, folder)
        return
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


def _read_mark(folder: Path) -> dict[str, object]:
    """What is known of the archive that was unpacked there; nothing where none was."""
    try:
        mark = json.loads((folder / _MARK).read_bytes())
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _check_same(archive: Path, folder: Path) -> None:
    mark = _read_mark(folder)
    if "sha256" not in mark:
        raise DataError(
            f"{folder} is there already and was not unpacked from dataset.archive={archive}: leave dataset.archive out "
            "to use it as it is, or give another dataset.root"
        )
    if not _identity(archive).items() <= mark.items() and mark["sha256"] != sha256(archive):
        raise DataError(
            f"{folder} was unpacked from another archive than {archive}: remove it, or give another dataset.root"
        )
