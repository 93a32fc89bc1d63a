"""Which image files a data set has, by phase and class: names, sizes and times, no file opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinyexp.data.decode import EXTENSIONS
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.source import Source, fingerprint
from tinyexp.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    path: str
    name: str  # below its class's folder, with /
    size: int  # bytes
    changed: int  # ns; ctime, which no program can set back as it can the other times


Classes = dict[str, list[File]]


@dataclass(kw_only=True)
class Listing:
    """What is in a data set's folders, unchecked, so that `prepare --verify` can tell all that is wrong."""

    base: Path
    phases: dict[str, Classes]  # train, val -> class -> its images, all in order of name
    others: list[str] = field(default_factory=list)  # files that are no image by their name, or in no class


class ListingError(DataError):
    """A listing that cannot be trained on; `prepare --verify` tells what else is wrong with it."""

    def __init__(self, message: str, listing: Listing) -> None:
        super().__init__(message)
        self.listing = listing


def list_classes(folder: Path, listing: Listing, inside: str = "") -> Classes:
    """The image files of each class's folder, at any depth, or of its subfolder `inside`, where it has that.

    What else there is goes to `others`.

    Raises:
        DataError: a folder that cannot be read, or a link that leaves the data set's.
    """
    base, classes = listing.base, Classes()
    try:
        for entry in _scan(str(folder), base):
            if not entry.is_dir():
                listing.others.append(entry.path)
                continue
            nested = f"{entry.path}/{inside}"
            top = nested if inside and os.path.isdir(nested) else entry.path  # noqa: PTH112
            classes[entry.name] = images = []
            for file in _walk(top, base):
                if file.name.lower().endswith(EXTENSIONS):
                    status = file.stat()
                    name = file.path[len(top) + 1 :].replace(os.sep, "/")
                    images.append(File(file.path, name, status.st_size, status.st_ctime_ns))
                else:
                    listing.others.append(file.path)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
    return classes


def make_source(listing: Listing, names: Mapping[str, str] | None = None) -> Source:
    """The data set of a listing. Its fingerprint is over phases, classes, names and sizes, wherever it stands.

    Args:
        names: what people call the classes.

    Raises:
        ListingError: a class without images, or classes that differ between train and val.
    """
    train, val = listing.phases["train"], listing.phases["val"]
    base = listing.base
    if differing := sorted(train.keys() ^ val.keys()):
        phase = "train" if differing[0] in train else "val"
        raise ListingError(
            f"{base / 'train'} and {base / 'val'} must have the same classes, got {differing[0]!r} in {phase} alone "
            f"({len(differing)} such in all)",
            listing,
        )
    for phase, classes in listing.phases.items():
        if empty := [name for name, files in classes.items() if not files]:
            raise ListingError(
                f"{base / phase / empty[0]} has no image ({' '.join(EXTENSIONS)}): remove it, or put its images there",
                listing,
            )
    if stray := [path for path in listing.others if path.lower().endswith(EXTENSIONS)]:
        log.warning("%d images stand in no class's folder and are left out, as %s", len(stray), stray[0])
    lines = [f"{phase}/{name}/{file.name} {file.size}" for phase, name, file in _each(listing)]
    return Source(
        classes=tuple(train),
        channels=3,
        train=_split("train", train),
        val=_split("val", val),
        fingerprint=fingerprint("\n".join(lines)),
        origin=str(base),
        names=tuple(names.get(name, name) for name in train) if names else (),
        listing=listing,
    )


def _each(listing: Listing) -> Iterator[tuple[str, str, File]]:
    for phase, classes in listing.phases.items():
        for name, files in classes.items():
            for file in files:
                yield phase, name, file


def _split(phase: str, classes: Classes) -> FileSplit:
    files = [(name, file) for name, files in classes.items() for file in files]
    identity = fingerprint("\n".join(f"{phase}/{name}/{file.name} {file.size} {file.changed}" for name, file in files))
    counts = [len(files) for files in classes.values()]
    labels = np.repeat(np.arange(len(counts)), counts)
    return FileSplit(tuple(file.path for _, file in files), labels, identity)


def _walk(folder: str, base: Path) -> Iterator[os.DirEntry[str]]:
    """The files at any depth below a folder."""
    for entry in _scan(folder, base):
        if entry.is_dir():
            yield from _walk(entry.path, base)
        else:
            yield entry


def _scan(folder: str, base: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, in order of name, without what is hidden and without links to folders: they may loop."""
    with os.scandir(folder) as entries:  # not Path.iterdir: here the kind comes with the name, without a call a file
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(base):
            raise DataError(f"{entry.path} is a link that leaves dataset.root={base}: put the file itself there")
        if entry.is_symlink() and entry.is_dir():
            log.warning("%s is a link to a folder and is not followed", entry.path)
            continue
        yield entry
