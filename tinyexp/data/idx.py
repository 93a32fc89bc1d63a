"""MNIST and Fashion-MNIST from their IDX files: in a folder, in Debian's package, or downloaded.

The format (http://yann.lecun.com/exdb/mnist/): a magic number 0 0 8 d (bytes, d dimensions), d big-endian uint32
sizes, then the bytes.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyexp.data.download import from_torchvision
from tinyexp.data.source import ArraySplit, Source, fingerprint
from tinyexp.errors import DataError

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")

_DIGITS = tuple("0123456789")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

log = logging.getLogger(__name__)


def mnist(*, root: str | None, cache_dir: Path, fetch: bool = True) -> Source:
    """MNIST (LeCun, Cortes, Burges, 1998): 60,000 train and 10,000 val images, (28, 28, 1).

    Read from `root`, else downloaded into it, into `cache_dir` when it is None. Raises DataError where neither works,
    and for a damaged file; NotFetchedError where it would have to be downloaded and `fetch` is false.
    """
    return _read_source(_locate("MNIST", root, cache_dir, fetch=fetch, debian=False), _DIGITS)


def fashion_mnist(*, root: str | None, cache_dir: Path, fetch: bool = True) -> Source:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747): shapes and errors as of `mnist`.

    Read from `root`, else from Debian's package dataset-fashion-mnist, else downloaded.
    """
    return _read_source(_locate("FashionMNIST", root, cache_dir, fetch=fetch, debian=True), _CLOTHES)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes, gzipped or plain.

    Raises DataError for a file that cannot be read, is of another kind, is empty, or is not as long as it says.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it and fetch it again") from error
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if len(content) < header or not content.startswith(magic):
        raise DataError(f"{path} must start as an IDX file, {magic.hex()}, got {content[:4].hex() or 'an empty file'}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, offset=4))
    if math.prod(shape) != len(content) - header or 0 in shape:
        raise DataError(
            f"{path} must hold as many bytes as its head says, {' x '.join(map(str, shape))}, "
            f"got {len(content) - header}: delete it and fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_source(paths: dict[str, Path], classes: tuple[str, ...]) -> Source:
    train_images, train_labels, val_images, val_labels = (paths[name] for name in _FILES)
    train = _read_pair(train_images, train_labels, len(classes))
    val = _read_pair(val_images, val_labels, len(classes))
    return Source(
        classes=classes,
        channels=1,
        train=ArraySplit(train[0][..., None], train[1].astype(np.int64)),
        val=ArraySplit(val[0][..., None], val[1].astype(np.int64)),
        fingerprint=fingerprint(*train, *val),
        origin=str(train_images.parent),
    )


def _read_pair(images_path: Path, labels_path: Path, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W) and their labels (N,)."""
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{labels_path} must have a label an image, got {len(labels)} for {len(images)}")
    if labels.max() >= num_classes:
        raise DataError(f"{labels_path} must have labels in 0..{num_classes - 1}, got {labels.max()}")
    return images, labels


def _locate(name: str, root: str | None, cache_dir: Path, *, fetch: bool, debian: bool) -> dict[str, Path]:
    """The four files, from the first place that has them all; `name` is torchvision's class and folder."""
    home = cache_dir if root is None else Path(root).expanduser()
    places = (home, home / name / "raw")  # as the files come, and as torchvision lays them out
    for place in places:
        if paths := _find(place):
            return paths
    if root is not None:
        log.warning("dataset.root=%s lacks files of %s (%s): looking elsewhere", root, name, ", ".join(_FILES))
    if debian and (paths := _find(_DEBIAN)):
        return paths
    cure = f"any of these would do: dataset.root=FOLDER with {', '.join(_FILES)}, plain or .gz;"
    cure += " apt install dataset-fashion-mnist;" if debian else ""
    from_torchvision(name, places[-1], f"{name}/raw", fetch=fetch, cure=cure)
    if paths := _find(places[-1]):
        return paths
    raise DataError(f"{places[-1]} lacks files of {name} ({', '.join(_FILES)}): remove it, and they are fetched")


def _find(folder: Path) -> dict[str, Path]:
    """The path of each of the four files, plain or gzipped; empty unless all are there."""
    # of both the plain one, which comes last: nothing to unpack
    found = {name: path for name in _FILES for path in (folder / f"{name}.gz", folder / name) if path.is_file()}
    return found if len(found) == len(_FILES) else {}
