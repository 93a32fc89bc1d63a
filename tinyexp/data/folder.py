"""A folder of images, root/train/CLASS/* and root/val/CLASS/*: Pillow decodes a file each time it is fetched."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tinyexp.data.source import Source, fingerprint
from tinyexp.errors import DataError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")
_CURE = "dataset.root=FOLDER must name a folder that has train/CLASS/* and val/CLASS/*"

_Files = list[tuple[str, int]]  # path and size in bytes of each

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Image files and their labels (N,), fetched as (n, 3, image_size, image_size)."""

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    image_size: int

    def fetch(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(index), self.image_size, self.image_size, 3), dtype=np.uint8)
        for row, number in enumerate(index):
            images[row] = decode(self.paths[number], self.image_size)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # (n, H, W, C) -> (n, C, H, W)


def imagefolder(*, root: str | None, image_size: int) -> Source:
    """The images below root/train and root/val; the classes are the folder names in train/, sorted.

    The fingerprint is over relative paths and file sizes, since contents would all have to be read. Raises DataError
    where a folder is missing or empty, where train/ and val/ differ in classes, and for a link that leaves `root`.
    """
    if root is None:
        raise DataError(f"dataset.root is not given: {_CURE}")
    base = Path(root).expanduser().resolve()
    train, val = _list_images(base, "train"), _list_images(base, "val")
    if differing := sorted(train.keys() ^ val.keys()):
        phase = "train" if differing[0] in train else "val"
        raise DataError(
            f"{base / 'train'} and {base / 'val'} must have the same classes, "
            f"got {differing[0]!r} in {phase} alone ({len(differing)} such in all)"
        )
    listing = [
        f"{path.removeprefix(str(base))} {size}" for files in (*train.values(), *val.values()) for path, size in files
    ]
    return Source(
        classes=tuple(train),
        image_shape=(3, image_size, image_size),
        train=_make_split(train, image_size),
        val=_make_split(val, image_size),
        fingerprint=fingerprint("\n".join(listing).replace(os.sep, "/")),
        origin=str(base),
    )


def decode(path: str, size: int) -> NDArray[np.uint8]:
    """An image file -> (size, size, 3): short side to `size`, bilinear with antialiasing, centre crop.

    Transparency is composited on white, since the colour below it is arbitrary; the first frame is taken of several;
    EXIF orientation is ignored, as torchvision does. Raises DataError for a file that cannot be decoded in full.
    """
    try:
        with Image.open(path) as image:
            rgb = _convert_to_rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow was seen to raise
        raise DataError(f"{path} cannot be decoded: {error}") from error
    # fit cuts its box and resizes it in one go; the kernel still sees the pixels around the box
    return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR))


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow's to RGB. Raises ValueError for values whose range is not known."""
    if image.mode == "F":
        raise ValueError("floating-point pixels (mode F) have no known range, store them in 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's own convert clips at 255: all white
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"pixels must lie in 0..65535 (mode {image.mode}), got {grey.min()}..{grey.max()}")
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _make_split(images: dict[str, _Files], image_size: int) -> FolderSplit:
    counts = [len(files) for files in images.values()]
    paths = tuple(path for files in images.values() for path, _ in files)
    return FolderSplit(paths, np.repeat(np.arange(len(counts)), counts), image_size)


def _list_images(base: Path, phase: str) -> dict[str, _Files]:
    """The image files of each class folder in base/phase, in order of name."""
    folder = base / phase
    try:
        images = {
            entry.name: [(file.path, file.stat().st_size) for file in _walk(entry.path, base)]
            for entry in _scan(str(folder), base)
            if entry.is_dir()
        }
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): {_CURE}") from error
    empty = [name for name, files in images.items() if not files] if images else ["CLASS"]
    if empty:
        raise DataError(f"{folder / empty[0]} has no image ({' '.join(_EXTENSIONS)}): {_CURE}")
    return images


def _walk(folder: str, base: Path) -> Iterator[os.DirEntry[str]]:
    """The image files at any depth below a folder."""
    for entry in _scan(folder, base):
        if entry.is_dir():
            yield from _walk(entry.path, base)
        elif entry.name.lower().endswith(_EXTENSIONS):
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
