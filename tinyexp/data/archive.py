"""Unpacking an archive that a stranger made: what is not plainly a tree of files is refused, not mended.

Everything that the heads of an archive tell is checked before the first byte is written. What the bytes are is not
looked at: an archive in an archive is a file.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tinyexp.data.archivepaths import Tree, refusal
from tinyexp.data.packed import MAX_RATIO, PIECE, Entry, Tar, Zip, damage, most_bytes, opened
from tinyexp.errors import ResourceError

MAX_ENTRIES = 5_000_000


def _stay(name: str) -> str:
    return name


def unpack(
    archive: Path,
    folder: Path,
    place: Callable[[str], str | None] = _stay,
    on_file: Callable[[int, int], None] | None = None,
) -> int:
    """Write the files of a zip or tar (plain, gz, bz2, xz) below `folder`, made here; returns how many.

    `place` gives a member's path below the folder, or None to leave it out. on_file(done, total) follows each file of
    the archive. Folders are made where a file needs them; modes and times are not taken over.

    Raises:
        DataError: it is another kind of file, damaged, or holds what this module refuses. Refusals come before a byte
            is written; for damage the folder may be there in part, which the caller removes.
        ResourceError: the disk has no room for it.
        OSError: the system's refusals, as they are: the folder is there already, the disk is full.
    """
    with opened(archive) as source:
        files = _check(archive, source)
        targets, tree = {}, Tree(archive)
        for name, entry in files.items():
            if (target := place(name)) is not None:
                targets[entry.name] = name if place is _stay else tree.add(target, name, is_folder=False)
        _check_room(archive, folder, sum(entry.size for entry in files.values() if entry.name in targets))
        folder.mkdir()
        made, done = set(), 0
        for entry in source.entries():
            if entry.is_folder:
                continue
            if (target := targets.get(entry.name)) is not None:
                parent = target.rpartition("/")[0]
                if parent not in made:
                    (folder / parent).mkdir(parents=True, exist_ok=True)
                    made.add(parent)
                _write(archive, entry, source.pieces(entry), f"{folder}/{target}")
            done += 1
            if on_file:
                on_file(done, len(files))
        return len(targets)


def members(archive: Path) -> list[str]:
    """The paths of all files, checked as by `unpack`, without unpacking. Raises DataError."""
    with opened(archive) as source:
        return list(_check(archive, source))


def sha256(path: Path) -> str:
    """A file's SHA-256, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check(archive: Path, source: Zip | Tar) -> dict[str, Entry]:
    """The files by path, in the archive's order. Raises DataError."""
    tree, files, total = Tree(archive), {}, 0
    most = most_bytes(archive)
    for count, entry in enumerate(source.entries(), 1):
        if count > MAX_ENTRIES:
            raise refusal(archive, entry.name, f"is one too many: at most {MAX_ENTRIES:,} entries are taken")
        path = tree.add(entry.name, entry.name, is_folder=entry.is_folder)
        if entry.is_folder:
            continue
        total += entry.size
        if total > most:
            raise refusal(archive, entry.name, f"brings it to more than {MAX_RATIO} times its packed size")
        files[path] = entry
    return files


def _check_room(archive: Path, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise ResourceError(
            f"{archive} needs {need / 1e6:,.1f} MB to unpack, and {folder.parent} has room for {free / 1e6:,.1f} MB: "
            "free some, or choose a folder on another disk"
        )


def _write(archive: Path, entry: Entry, pieces: Iterator[bytes], path: str) -> None:
    written = 0
    with io.open(path, "xb") as file:  # noqa: UP020  Path would take a tenth of the time of small files
        for piece in pieces:
            written += len(piece)
            if written > entry.size:
                break
            file.write(piece)
    if written != entry.size:
        got = f"more than {entry.size}" if written > entry.size else str(written)
        raise damage(archive, entry.name, f"it must have the {entry.size} bytes that it declares, got {got}")
