"""Unpacking an archive that a stranger made: what is not plainly a tree of files is refused, not mended.

Everything that the heads of an archive tell is checked before the first byte is written. What the bytes are is not
looked at: an archive in an archive is a file.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tinyexp.errors import DataError, ResourceError

MAX_ENTRIES = 5_000_000
MAX_RATIO = 200  # unpacked to packed; photographs come to 1, text to 10, zeros to 1,000
RATIO_FREE_MEMBER = 10_000_000  # bytes of one member of a zip that may have any ratio: an empty mask is no attack
RATIO_FREE_WHOLE = 100_000_000  # and of a whole archive
MAX_PART, MAX_PATH = 255, 1024  # bytes of UTF-8: what Linux and a Mac take

_PIECE = 1 << 20
_SMALL_PIECE = 1 << 12  # zipfile unpacks the whole of a packed piece of bz2 or lzma, a thousand times as large, at once
_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
_PACKERS: dict[bytes, Callable[[Path], object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_DRIVE = re.compile(r"(\./+)*[A-Za-z]:")
_ZIP_END = 22  # bytes of a zip's last record, without its comment
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 0x41  # the bits for weak and strong encryption
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
           OverflowError, NotImplementedError)  # fmt: skip


class _Entry(NamedTuple):
    name: str  # as it stands in the archive
    size: int  # bytes, as declared
    is_folder: bool
    head: zipfile.ZipInfo | None  # a tar has no need of it


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
    with _opened(archive) as source:
        files = _check(archive, source)
        targets, tree = {}, _Tree(archive)
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
    with _opened(archive) as source:
        return list(_check(archive, source))


def sha256(path: Path) -> str:
    """A file's SHA-256, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _check(archive: Path, source: _Zip | _Tar) -> dict[str, _Entry]:
    """The files by path, in the archive's order. Raises DataError."""
    tree, files, total = _Tree(archive), {}, 0
    most = max(RATIO_FREE_WHOLE, MAX_RATIO * archive.stat().st_size)
    for count, entry in enumerate(source.entries(), 1):
        if count > MAX_ENTRIES:
            raise _refusal(archive, entry.name, f"is one too many: at most {MAX_ENTRIES:,} entries are taken")
        path = tree.add(entry.name, entry.name, is_folder=entry.is_folder)
        if entry.is_folder:
            continue
        total += entry.size
        if total > most:
            raise _refusal(archive, entry.name, f"brings it to more than {MAX_RATIO} times its packed size")
        files[path] = entry
    return files


def _check_room(archive: Path, folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder.parent).free
    if need > free:
        raise ResourceError(
            f"{archive} needs {need / 1e6:,.1f} MB to unpack, and {folder.parent} has room for {free / 1e6:,.1f} MB: "
            "free some, or choose a folder on another disk"
        )


def _write(archive: Path, entry: _Entry, pieces: Iterator[bytes], path: str) -> None:
    written = 0
    with io.open(path, "xb") as file:  # noqa: UP020  Path would take a tenth of the time of small files
        for piece in pieces:
            written += len(piece)
            if written > entry.size:
                break
            file.write(piece)
    if written != entry.size:
        got = f"more than {entry.size}" if written > entry.size else str(written)
        raise _damage(archive, entry.name, f"it must have the {entry.size} bytes that it declares, got {got}")


class _Tree:
    """Paths, of which no two may be one: here, or on a disk that does not tell case or ways to write é apart."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._seen: dict[str, tuple[str, str, bool]] = {}  # folded path -> path, member, a folder that was not listed
        self._folders: set[str] = set()

    def add(self, path: str, member: str, *, is_folder: bool) -> str:
        """The path, normalised. Raises DataError for one that breaks a rule, or is another's."""
        if rule := _broken_rule(path):
            raise _refusal(
                self._archive, member, rule if path == member else f"would be at {_shown(path)}, which {rule}"
            )
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts and not is_folder:  # "./" is the folder itself, which many a tar lists
            raise _refusal(self._archive, member, "has an empty name")
        for depth in range(len(parts) - 1, 0, -1):
            parent = "/".join(parts[:depth])
            if parent in self._folders:
                break
            self._take(parent, member, is_folder=True, listed=False)
        path = "/".join(parts)
        self._take(path, member, is_folder=is_folder, listed=True)
        return path

    def _take(self, path: str, member: str, *, is_folder: bool, listed: bool) -> None:
        folded = path.lower() if path.isascii() else _fold(path)
        if folded in self._seen:
            other, its_member, implied = self._seen[folded]
            if not (implied and is_folder and other == path):
                told = (
                    f"and {_shown(its_member)} would be in one place, here or on a disk that does not tell case apart"
                )
                raise _refusal(self._archive, member, told)
        self._seen[folded] = (path, member, not listed)
        if is_folder:
            self._folders.add(path)


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _broken_rule(path: str) -> str | None:
    """What is wrong with a path, read as text alone."""
    parts = path.split("/")
    if not path:
        return "has an empty name"
    if not path.isprintable() and any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in path):
        return "has a control character, or one that is not UTF-8, in its name"
    if path.startswith("/"):
        return "has an absolute path"
    if ".." in parts:
        return "has a part .. in its path"
    if "\\" in path:
        return "has a backslash in its path"
    if _DRIVE.match(path):
        return "has a drive letter in its path"
    size = len(path.encode())
    if size > MAX_PATH or (size > MAX_PART and max(len(part.encode()) for part in parts) > MAX_PART):
        return f"has a name that is too long: at most {MAX_PART} bytes a part, {MAX_PATH} in all"
    return None


class _Zip:
    """The entries of a zip file."""

    def __init__(self, archive: Path, file: zipfile.ZipFile) -> None:
        self._archive, self._file = archive, file
        self._is_checked = False

    def entries(self) -> Iterator[_Entry]:
        """Raises DataError, when they are read for the first time."""
        packed, room = 0, self._archive.stat().st_size
        for info in self._file.infolist():
            packed += info.compress_size
            if not self._is_checked and (rule := _broken_zip_rule(info)):
                raise _refusal(self._archive, info.orig_filename, rule)
            if packed > room:
                raise _refusal(self._archive, info.filename, "shares its bytes with another member")
            yield _Entry(info.filename, info.file_size, info.filename.endswith("/"), info)
        self._is_checked = True

    def pieces(self, entry: _Entry) -> Iterator[bytes]:
        """Raises DataError."""
        head = cast(zipfile.ZipInfo, entry.head)
        head.file_size = entry.size + 1  # zipfile ends a member where it says; so that one which has more is seen
        size = _PIECE if head.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else _SMALL_PIECE
        with _reading(self._archive, entry.name), self._file.open(head) as file:
            while len(piece := file.read(size)) == size:
                yield piece
            yield piece  # the last is short


def _broken_zip_rule(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member beside its path."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    is_folder = info.filename.endswith("/")
    if info.orig_filename != info.filename and (rule := _broken_rule(info.orig_filename)):
        return rule  # the library's name ends at a NUL, and may come from a second place in the head
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not is_folder):
        return "is a link, a device or else no plain file"
    if is_folder and info.file_size:
        return "is a folder with bytes"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in _METHODS:
        return f"is packed by method {info.compress_type}: it must be stored, deflate, bzip2 or lzma"
    if info.file_size > max(RATIO_FREE_MEMBER, MAX_RATIO * info.compress_size):
        return f"declares more than {MAX_RATIO} times its packed size"
    return None


class _Tar:
    """The entries of a tar file, which is read from its beginning for each pass."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    def entries(self) -> Iterator[_Entry]:
        """Raises DataError."""
        with _Forward(self._archive) as self._stream:
            with _reading(self._archive):
                try:
                    tar = tarfile.TarFile(fileobj=self._stream, encoding="utf-8")
                except tarfile.ReadError as error:
                    raise DataError(
                        f"{self._archive} must be a zip or a tar (plain, gz, bz2 or xz), and begins "
                        f"{self._stream.last[:16]!r}: delete it and fetch it again"
                    ) from error
            while True:
                with _reading(self._archive):
                    head = tar.next()
                if head is None:
                    break
                cast(Any, tar).members.clear()  # tarfile keeps them all
                if not (head.isdir() or head.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or head.issparse():
                    raise _refusal(self._archive, head.name, "is a link, a device or else no plain file")
                if head.size < 0:
                    raise _refusal(self._archive, head.name, "declares a size below 0")
                yield _Entry(head.name, head.size, head.isdir(), None)
            with _reading(self._archive):
                self._stream.finish()

    def pieces(self, entry: _Entry) -> Iterator[bytes]:
        """Raises DataError."""
        left = entry.size
        with _reading(self._archive, entry.name):
            while left and (piece := self._stream.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece


class _Forward(io.BufferedIOBase):
    """The bytes of a tar, unpacked: forward alone, little at a time, and no more than the file's size allows.

    tarfile itself reads a head of any declared size into memory, and goes round in circles where a size is negative.
    """

    def __init__(self, archive: Path) -> None:
        with archive.open("rb") as file:
            start = file.read(max(map(len, _PACKERS)))
        packer = next((packer for head, packer in _PACKERS.items() if start.startswith(head)), None)
        self._file = cast(BinaryIO, packer(archive) if packer else archive.open("rb"))
        self._is_packed = packer is not None
        self._at = 0
        self._most = max(RATIO_FREE_WHOLE, MAX_RATIO * archive.stat().st_size)
        self.last = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises ValueError for more than a piece, and where all that was read is more than may be."""
        if size is None or not 0 <= size <= _PIECE:
            raise ValueError(f"a head must have at most {_PIECE} bytes, got one of {size}")
        self.last = self._file.read(size)
        self._at += len(self.last)
        if self._is_packed and self._at > self._most:
            raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size")
        return self.last

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Raises ValueError for a step back."""
        if offset < self._at:
            raise ValueError("a member must not begin before the one ahead of it ends")
        if not self._is_packed:
            self._at = self._file.seek(offset)
        while self._at < offset and self.read(min(_PIECE, offset - self._at)):
            pass
        return self._at

    def finish(self) -> None:
        """Read to the end, where the packers have their sums. Raises EOFError where the tar's own end is not there."""
        if self.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken head for the end
            raise EOFError("no mark of its end")
        while self.read(_PIECE):
            pass
        if self._at % tarfile.BLOCKSIZE:
            raise EOFError("its last block is cut")

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _opened(archive: Path) -> Iterator[_Zip | _Tar]:
    """Told by how the file begins, since names lie. Raises DataError."""
    with archive.open("rb") as file:
        is_zip = file.read(4) in _ZIP_HEADS
    if is_zip:
        with _reading(archive):
            opened = zipfile.ZipFile(archive)
        with opened:
            _check_count(archive, opened)
            yield _Zip(archive, opened)
    else:
        yield _Tar(archive)


def _check_count(archive: Path, file: zipfile.ZipFile) -> None:
    """zipfile passes over the first members where the size of the index is wrong. Raises DataError."""
    with archive.open("rb") as raw:
        raw.seek(archive.stat().st_size - len(file.comment) - _ZIP_END)
        count = int.from_bytes(raw.read(12)[10:], "little")
    if count not in (0xFFFF, len(file.infolist()) % 0x10000):  # 0xFFFF: it is elsewhere, in a zip of so many
        raise _damage(archive, None, f"{len(file.infolist())} members where it must have {count}")


@contextmanager
def _reading(archive: Path, member: str | None = None) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into DataError."""
    try:
        yield
    except _DAMAGE as error:
        raise _damage(archive, member, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the system's: not a library's, nor for a seek out of the file
            raise
        raise _damage(archive, member, str(error)) from error


def _damage(archive: Path, member: str | None, why: str) -> DataError:
    where = "" if member is None else f" in its member {_shown(member)}"
    return DataError(f"{archive} is damaged{where} ({why}): delete it and fetch it again")


def _refusal(archive: Path, member: str, rule: str) -> DataError:
    return DataError(
        f"{archive} is refused, nothing was unpacked: its member {_shown(member)} {rule}. "
        "Fetch it from a source that you trust, or pack its files anew"
    )


def _shown(name: str) -> str:
    """Control characters would write on a terminal what they like."""
    shown = repr(name)
    return shown if len(shown) <= 200 else f"{shown[:100]}...{shown[-90:]}"
