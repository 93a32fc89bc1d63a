"""What a zip or tar holds: its entries by their heads, and their bytes, read forward and in pieces.

Heads that are no file or folder are refused here; which paths may be is in archivepaths.py.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tinyexp.data.archivepaths import broken_rule, refusal, shown
from tinyexp.errors import DataError

MAX_RATIO = 200  # unpacked to packed; photographs come to 1, text to 10, zeros to 1,000
RATIO_FREE_MEMBER = 10_000_000  # bytes of one member of a zip that may have any ratio: an empty mask is no attack
RATIO_FREE_WHOLE = 100_000_000  # and of a whole archive

PIECE = 1 << 20  # bytes that are read at once
_SMALL_PIECE = 1 << 12  # zipfile unpacks the whole of a packed piece of bz2 or lzma, a thousand times as large, at once
_ZIP_HEADS = (b"PK\x03\x04", b"PK\x05\x06")
_PACKERS: dict[bytes, Callable[[Path], object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZIP_END = 22  # bytes of a zip's last record, without its comment
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 0x41  # the bits for weak and strong encryption
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
           OverflowError, NotImplementedError)  # fmt: skip


class Entry(NamedTuple):
    name: str  # as it stands in the archive
    size: int  # bytes, as declared
    is_folder: bool
    head: zipfile.ZipInfo | None  # a tar has no need of it


@contextmanager
def opened(archive: Path) -> Iterator[Zip | Tar]:
    """Told by how the file begins, since names lie. Raises DataError."""
    with archive.open("rb") as raw:
        is_zip = raw.read(4) in _ZIP_HEADS
    if is_zip:
        with _reading(archive):
            file = zipfile.ZipFile(archive)
        with file:
            _check_count(archive, file)
            yield Zip(archive, file)
    else:
        yield Tar(archive)


def most_bytes(archive: Path) -> int:
    """So many may come out of it."""
    return max(RATIO_FREE_WHOLE, MAX_RATIO * archive.stat().st_size)


def damage(archive: Path, member: str | None, why: str) -> DataError:
    where = "" if member is None else f" in its member {shown(member)}"
    return DataError(f"{archive} is damaged{where} ({why}): delete it and fetch it again")


class Zip:
    """The entries of a zip file."""

    def __init__(self, archive: Path, file: zipfile.ZipFile) -> None:
        self._archive, self._file = archive, file
        self._is_checked = False

    def entries(self) -> Iterator[Entry]:
        """Raises DataError, when they are read for the first time."""
        packed, room = 0, self._archive.stat().st_size
        for info in self._file.infolist():
            packed += info.compress_size
            if not self._is_checked and (rule := _broken_zip_rule(info)):
                raise refusal(self._archive, info.orig_filename, rule)
            if packed > room:
                raise refusal(self._archive, info.filename, "shares its bytes with another member")
            yield Entry(info.filename, info.file_size, info.filename.endswith("/"), info)
        self._is_checked = True

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """Raises DataError."""
        head = cast(zipfile.ZipInfo, entry.head)
        head.file_size = entry.size + 1  # zipfile ends a member where it says; so that one which has more is seen
        size = PIECE if head.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else _SMALL_PIECE
        with _reading(self._archive, entry.name), self._file.open(head) as file:
            while len(piece := file.read(size)) == size:
                yield piece
            yield piece  # the last is short


def _broken_zip_rule(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member beside its path."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    is_folder = info.filename.endswith("/")
    if info.orig_filename != info.filename and (rule := broken_rule(info.orig_filename)):
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


class Tar:
    """The entries of a tar file, which is read from its beginning for each pass."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    def entries(self) -> Iterator[Entry]:
        """Raises DataError."""
        with Forward(self._archive) as self._stream:
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
                    raise refusal(self._archive, head.name, "is a link, a device or else no plain file")
                if head.size < 0:
                    raise refusal(self._archive, head.name, "declares a size below 0")
                yield Entry(head.name, head.size, head.isdir(), None)
            with _reading(self._archive):
                self._stream.finish()

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """Raises DataError."""
        left = entry.size
        with _reading(self._archive, entry.name):
            while left and (piece := self._stream.read(min(PIECE, left))):
                left -= len(piece)
                yield piece


class Forward(io.BufferedIOBase):
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
        self._most = most_bytes(archive)
        self.last = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises ValueError for more than a piece, and where all that was read is more than may be."""
        if size is None or not 0 <= size <= PIECE:
            raise ValueError(f"a head must have at most {PIECE} bytes, got one of {size}")
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
        while self._at < offset and self.read(min(PIECE, offset - self._at)):
            pass
        return self._at

    def finish(self) -> None:
        """Read to the end, where the packers have their sums. Raises EOFError where the tar's own end is not there."""
        if self.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a broken head for the end
            raise EOFError("no mark of its end")
        while self.read(PIECE):
            pass
        if self._at % tarfile.BLOCKSIZE:
            raise EOFError("its last block is cut")

    def close(self) -> None:
        self._file.close()
        super().close()


def _check_count(archive: Path, file: zipfile.ZipFile) -> None:
    """zipfile passes over the first members where the size of the index is wrong. Raises DataError."""
    with archive.open("rb") as raw:
        raw.seek(archive.stat().st_size - len(file.comment) - _ZIP_END)
        count = int.from_bytes(raw.read(12)[10:], "little")
    if count not in (0xFFFF, len(file.infolist()) % 0x10000):  # 0xFFFF: it is elsewhere, in a zip of so many
        raise damage(archive, None, f"{len(file.infolist())} members where it must have {count}")


@contextmanager
def _reading(archive: Path, member: str | None = None) -> Iterator[None]:
    """Turn what the libraries raise for damaged files into DataError."""
    try:
        yield
    except _DAMAGE as error:
        raise damage(archive, member, str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the system's: not a library's, nor for a seek out of the file
            raise
        raise damage(archive, member, str(error)) from error
