"""All files of a split decoded by as many processes as there are cores, their pixels written in order to one file."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import struct
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyexp.data.decode import UnreadableError, decode, quieten_pillow
from tinyexp.data.filesplit import MEND, FileSplit
from tinyexp.data.progress import bar
from tinyexp.data.workers import Workers
from tinyexp.errors import DataError, ResourceError

_CHUNK = 128  # files that a worker decodes before it writes
_LOOKED_AT = 100  # files whose heads are read to tell how large all are
_MARGIN = 1.05  # so many times what was estimated must be free
_WAIT = 0.0005  # seconds between two looks whether the chunk before has told where it ends

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    places: NDArray[np.int64]  # (images, 3): where the pixels begin, height, width; in the order of the files
    bad: dict[int, str]  # files that cannot be decoded, by number, and why
    size: int  # bytes of all pixels


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    number: int
    paths: tuple[str, ...]
    short_side: int | None
    pixels: Path | None  # None: only try whether they can be decoded
    stop: bool

    @property
    def ends(self) -> Path:
        """int64 for each chunk: 1 + where its pixels end in the file; 0: not known yet."""
        assert self.pixels is not None
        return self.pixels.with_name("ends")


def decode_files(split: FileSplit, pixels: Path | None, workers: Workers, *, stop: bool) -> Decoded:
    """Decode each file once and write its pixels (H, W, 3) to a new file; or only try them, where that is None.

    Raises:
        DataError: with `stop`, the first file that cannot be decoded.
    """
    start, count = time.monotonic(), len(split.paths)
    chunks = [
        _Chunk(
            number=first // _CHUNK,
            paths=split.paths[first : first + _CHUNK],
            short_side=split.short_side,
            pixels=pixels,
            stop=stop,
        )
        for first in range(0, count, _CHUNK)
    ]
    if pixels:
        pixels.touch()
        chunks[0].ends.write_bytes(bytes(8 * len(chunks)))
    sizes: list[tuple[int, int]] = []
    bad: dict[int, str] = {}
    for found in _in_workers(chunks, count, workers):
        for size in found:
            if isinstance(size, str):
                bad[len(sizes) + len(bad)] = size
            else:
                sizes.append(size)
    if pixels:
        chunks[0].ends.unlink()
    shapes = np.array(sizes, np.int64).reshape(-1, 2)
    lengths = 3 * shapes.prod(1)
    seconds = time.monotonic() - start
    log.info("decoded %s images in %.1f s (%s a second)", f"{count:,}", seconds, f"{count / seconds:,.0f}")
    places = np.concatenate([(np.cumsum(lengths) - lengths)[:, None], shapes], 1)
    return Decoded(places=places, bad=bad, size=int(lengths.sum()))


def _in_workers(chunks: list[_Chunk], count: int, workers: Workers) -> Iterator[list[tuple[int, int] | str]]:
    """What `_decode_chunk` finds, in the chunks' order; few are sent ahead, so that little is left when one fails."""
    waiting: deque[Future[list[tuple[int, int] | str]]] = deque()
    rest, done = iter(chunks), 0
    try:
        with bar("decoding images") as show:
            while done < count:
                more = islice(rest, 2 * workers.processes - len(waiting))
                waiting.extend(workers.pool.submit(_decode_chunk, chunk) for chunk in more)
                found = waiting.popleft().result()
                yield found
                done += len(found)
                show(done, count)
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that decoded images near {chunks[done // _CHUNK].paths[0]} was killed: for want of memory, or "
            "by a damaged file, which `python -m tinyexp prepare --verify` then names"
        ) from error


def estimate_size(split: FileSplit) -> int:
    """About how many bytes all pixels would take, by the heads of some files spread evenly."""
    quieten_pillow()
    step = max(1, len(split.paths) // _LOOKED_AT)
    looked_at = [_decoded_size(path, split.short_side) for path in split.paths[::step]]
    return sum(looked_at) * len(split.paths) // len(looked_at)


def check_room(folder: Path, size: int) -> None:
    """Raises ResourceError where so many bytes have no room on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < size * _MARGIN:
        raise ResourceError(
            f"{folder} has room for {free / 1e9:.1f} GB, and the decoded images take about {size / 1e9:.1f} GB: give "
            "dataset.cache_dir on another disk, or dataset.max_gb=0, with which they are decoded anew each epoch"
        )


def _decoded_size(path: str, short_side: int | None) -> int:
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # decode tells why
        return 0
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    return round(3 * width * height * scale**2)


def _decode_chunk(chunk: _Chunk) -> list[tuple[int, int] | str]:
    """Each file's height and width, or why it cannot be decoded; in a worker."""
    try:
        images = [_decode_one(path, chunk) for path in chunk.paths]
    except BaseException:
        if chunk.pixels:
            _tell_end(chunk, 0)  # others wait for it
        raise
    if chunk.pixels:
        parts = [image.data.cast("B") for image in images if not isinstance(image, str)]
        _write_at(chunk.pixels, parts, _tell_end(chunk, sum(map(len, parts))))
    return [image if isinstance(image, str) else image.shape[:2] for image in images]


def _decode_one(path: str, chunk: _Chunk) -> NDArray[np.uint8] | str:
    try:
        return decode(path, chunk.short_side)
    except UnreadableError:
        raise  # the system's no, which may be another one tomorrow: not to be kept as the file's fault
    except DataError as error:
        if chunk.stop:
            raise DataError(f"{error}: {MEND}") from error
        return str(error)


def _tell_end(chunk: _Chunk, length: int) -> int:
    """Where this chunk's pixels begin, which is where those before end; and tell the next one where these end."""
    with chunk.ends.open("r+b") as file, mmap.mmap(file.fileno(), 0) as ends:
        begin = 0
        if chunk.number:
            while not (begin := _end_of(ends, chunk.number - 1)):
                time.sleep(_WAIT)
            begin -= 1
        struct.pack_into("q", ends, 8 * chunk.number, 1 + begin + length)
    return begin


def _end_of(ends: mmap.mmap, number: int) -> int:
    return int(struct.unpack_from("q", ends, 8 * number)[0])


def _write_at(path: Path, parts: list[memoryview], begin: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        written = os.pwritev(descriptor, parts, begin) if parts else 0
        rest = memoryview(b"".join(parts))[written:] if written < sum(map(len, parts)) else b""
        while rest:  # the system took a part: the disk is full, as the next try will tell
            begin += written
            written = os.pwrite(descriptor, rest, begin)
            rest = rest[written:]
    finally:
        os.close(descriptor)
