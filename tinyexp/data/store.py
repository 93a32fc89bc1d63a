"""Image files decoded once: one flat file of uint8 pixels, mapped into memory and shared by all who read it."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import mmap
import secrets
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from tinyexp.cache import build_once
from tinyexp.config import Config, LoaderConfig
from tinyexp.data import decode
from tinyexp.data.decoding import Decoded, check_room, decode_files, estimate_size
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.source import Images, Source, fingerprint, list_source
from tinyexp.data.workers import Workers
from tinyexp.errors import DataError

_VERSION = 1  # of the files below

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class StoredSplit:
    """Decoded images, (H, W, 3) each, and their labels (N,)."""

    folder: Path
    labels: NDArray[np.int64]

    def fetch(self, index: NDArray[np.int64]) -> Images:
        """Views of the file, which must not be written to; a copy (n, H, W, 3) where all images have one size."""
        if self._uniform is not None:
            return self._uniform[index]
        return [
            self._pixels[start : start + 3 * height * width].reshape(height, width, 3)
            for start, height, width in self._places[index].tolist()
        ]

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """(N, 3): where each image's pixels begin, its height and its width."""
        return np.load(self.folder / "places.npy", allow_pickle=False)  # type: ignore[no-any-return]

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        with (self.folder / "pixels").open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    @cached_property
    def _uniform(self) -> NDArray[np.uint8] | None:
        height, width = self._places[0, 1:].tolist()
        alike = not (self._places[:, 1:] != (height, width)).any()
        return self._pixels.reshape(-1, height, width, 3) if alike else None

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "labels": self.labels}  # a loader process maps the file itself


def load_source(config: Config) -> Source:
    """The data set that the config names, fetched where it is missing, its images decoded once.

    Raises:
        ConfigError, DataError: wrong arguments, a data set that is missing or not what it should be, or an image that
            cannot be decoded.
        ResourceError: no room for what is made once.
    """
    return decoded(list_source(config, fetch=True), config.loader)


def decoded(source: Source, loader: LoaderConfig) -> Source:
    """The same data set with its image files decoded once; as they are fetched, where that is over dataset.max_gb.

    Raises:
        DataError: an image that cannot be decoded, or too many under dataset.on_error=skip.
        ResourceError: no room.
    """
    files = files_to_decode(source, loader)
    if not files:
        return source
    folders = {phase: store_folder(split, loader) for phase, split in files.items()}
    sizes = {phase: _size(split, folders[phase]) for phase, split in files.items()}
    in_store = sum(sizes.values()) <= loader.max_gb * 1e9
    if not in_store:
        log.info(
            "the images take %.1f GB when decoded, over dataset.max_gb=%g: they are decoded anew each epoch",
            sum(sizes.values()) / 1e9,
            loader.max_gb,
        )
    made: dict[str, StoredSplit | FileSplit] = {}
    skipped = 0
    stop = loader.on_error == "stop"
    with Workers() as workers:
        if in_store:
            bad = {phase: _stored(split, folders[phase], sizes[phase], workers, stop) for phase, split in files.items()}
        else:
            bad = {phase: _tried(split, folders[phase], workers, stop) for phase, split in files.items()}
    for phase, split in files.items():
        kept = _kept(source, split, bad[phase], loader, phase)
        skipped += len(bad[phase])
        if in_store:
            made[phase] = StoredSplit(folders[phase], split.labels[kept])
            made[phase].fetch(kept[:0])  # maps it: from now on the files may be removed
        else:
            made[phase] = replace(split, paths=tuple(split.paths[i] for i in kept), labels=split.labels[kept])
    left_out = fingerprint(*(f"{phase} {sorted(found)}" for phase, found in bad.items()))
    return replace(
        source,
        train=made.get("train", source.train),
        val=made.get("val", source.val),
        skipped=skipped,
        left_out=left_out if skipped else "",
    )


def files_to_decode(source: Source, loader: LoaderConfig) -> dict[str, FileSplit]:
    """By phase, the splits that are image files, at the size that they are decoded to."""
    side = 2 * loader.image_size if loader.decode_size == "auto" else loader.decode_size
    return {
        phase: replace(split, short_side=side)
        for phase in ("train", "val")
        if isinstance(split := getattr(source, phase), FileSplit)
    }


def store_folder(split: FileSplit, loader: LoaderConfig) -> Path:
    """Where a split's decoded images are, or will be."""
    return Path(loader.cache_dir).expanduser() / "store" / store_key(split)


def store_key(split: FileSplit) -> str:
    """Follows from all that the pixels follow from: files, size, and the code and library that decode them."""
    code = inspect.getsource(decode)
    return fingerprint(split.identity, split.short_side or 0, code, PIL.__version__, _VERSION)


def _size(split: FileSplit, folder: Path) -> int:
    try:
        return (folder / "pixels").stat().st_size
    except OSError:
        return estimate_size(split)


def _stored(split: FileSplit, folder: Path, size: int, workers: Workers, stop: bool) -> dict[int, str]:
    """Make the store, of about `size` bytes, if it is not there. Returns why images are not in it, by number."""
    if folder.exists() and not _is_whole(folder):
        _discard(folder)

    def build(aside: Path) -> None:
        aside.mkdir()
        check_room(aside, size)
        done = decode_files(split, aside / "pixels", workers, stop=stop)
        np.save(aside / "places.npy", done.places)
        _write_about(aside / "store.json", split, done)

    build_once(folder, build, what=f"the store of {len(split.paths):,} images")
    return _read_bad(folder / "store.json")


def _tried(split: FileSplit, folder: Path, workers: Workers, stop: bool) -> dict[int, str]:
    """Under dataset.on_error=skip, try once which images can be decoded: an epoch's samples are known before it."""
    if stop:
        return {}
    path = folder.with_suffix(".json")
    try:
        return _read_bad(path)
    except FileNotFoundError:
        pass
    except (ValueError, LookupError, TypeError, AttributeError):
        _discard(path)

    def build(aside: Path) -> None:
        _write_about(aside, split, decode_files(split, None, workers, stop=False))

    build_once(path, build, what="the list of images that can be decoded")
    return _read_bad(path)


def _discard(path: Path) -> None:
    log.warning("%s is damaged: it is made again", path)
    with contextlib.suppress(FileNotFoundError):  # another process was quicker
        # a name that build_once takes for what a killed build left, and removes
        path.rename(path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}"))


def _write_about(path: Path, split: FileSplit, done: Decoded) -> None:
    bad = {str(number): why for number, why in done.bad.items()}
    about = {"first": split.paths[0], "images": len(done.places), "bytes": done.size, "bad": bad}
    path.write_text(json.dumps(about))


def _read_bad(path: Path) -> dict[int, str]:
    return {int(number): why for number, why in json.loads(path.read_bytes())["bad"].items()}


def _is_whole(folder: Path) -> bool:
    """Has each file of the store the length that it was made with?"""
    try:
        about = json.loads((folder / "store.json").read_bytes())
        places = np.load(folder / "places.npy", mmap_mode="r", allow_pickle=False)
        return bool(places.shape == (about["images"], 3) and (folder / "pixels").stat().st_size == about["bytes"])
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        return False


def _kept(source: Source, split: FileSplit, bad: dict[int, str], loader: LoaderConfig, phase: str) -> NDArray[np.int64]:
    """The numbers of the images that can be decoded. Raises DataError where too many cannot, or where one must not."""
    kept = np.setdiff1d(np.arange(len(split.labels)), np.array(list(bad), np.int64))
    if not bad:
        return kept
    first = bad[min(bad)]
    if loader.on_error == "stop":
        raise DataError(f"{first} (dataset.on_error=skip leaves such images out: {len(bad)} in {phase})")
    if len(bad) > loader.max_skipped * len(split.labels):
        raise DataError(
            f"{len(bad)} of {len(split.labels)} {phase} images cannot be decoded, more than "
            f"dataset.max_skipped={loader.max_skipped:g} of them allows; the first: {first}"
        )
    counts = np.bincount(split.labels[kept], minlength=len(source.classes))
    if not counts.all():
        raise DataError(f"class {source.classes[int(counts.argmin())]} has no {phase} image that can be decoded")
    log.warning("%d %s images cannot be decoded and are left out; the first: %s", len(bad), phase, first)
    return kept
