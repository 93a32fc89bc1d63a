"""What a data set is: classes, and two splits that fetch uint8 images by number.

Nothing here reads a file, and nothing augments or batches: each data set has its own module, the loader has another.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds
from tinyexp.config import Config, LoaderConfig
from tinyexp.errors import ConfigError, DataError
from tinyexp.targets import build

OFFERED = ("image_size", "cache_dir", "fetch")  # what a data set's signature may ask of the config

# (n, H, W, C), or where images differ in size one (H, W, C) each; 0..255
Images = NDArray[np.uint8] | list[NDArray[np.uint8]]


class Split(Protocol):
    """One phase's samples. It must pickle, so that loader workers started by spawn can take it."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers, (N,)."""

    def fetch(self, index: NDArray[np.int64]) -> Images:
        """Sample numbers (n,) -> their images; not to be written to."""


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Samples that are held in memory: images (N, H, W, C), labels (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"images must be uint8 of (N, H, W, C), got {images.dtype} of {images.shape}")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be whole numbers, one for each of {len(images)} images, "
                f"got {labels.dtype} of {labels.shape}"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def fetch(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[index]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set; `fingerprint` is hex and follows from its content, so that a copy elsewhere has the same.

    Raises DataError for fewer than 2 classes, images of no channel, empty splits, and a label that is no class.
    """

    classes: tuple[str, ...]  # what tells a class: its folder's name, its WordNet id
    channels: int
    train: Split
    val: Split
    fingerprint: str
    origin: str = ""  # where its files are
    names: tuple[str, ...] = ()  # what people call the classes; empty: as `classes`
    listing: Any = None  # of image files: listing.py's, for `prepare --verify`
    skipped: int = 0  # images that could not be decoded and were left out
    left_out: str = ""  # a fingerprint of which

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise DataError(f"a data set needs at least 2 classes, got {list(self.classes)}")
        if self.channels < 1:
            raise DataError(f"images need at least 1 channel, got {self.channels}")
        for phase, labels in (("train", self.train.labels), ("val", self.val.labels)):
            if len(labels) == 0:
                raise DataError(f"the {phase} split needs at least one sample, got none")
            split = getattr(self, phase)
            if isinstance(split, ArraySplit) and split.images.shape[3] != self.channels:
                raise DataError(
                    f"{phase} images must have channels={self.channels}, got (N, H, W, C) {split.images.shape}"
                )
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(
                    f"{phase} labels must lie in 0..{len(self.classes) - 1}, one number a class, "
                    f"got {labels.min()}..{labels.max()}"
                )

    @property
    def content(self) -> str:
        """What ranks compare: images that one machine cannot decode make it another."""
        told = f" without {self.skipped} ({self.left_out[:8]})" if self.skipped else ""
        return f"{self.fingerprint[:16]} of {len(self.train.labels)} train and {len(self.val.labels)} val images{told}"


def list_source(config: Config, *, fetch: bool) -> Source:
    """The data set that the config names, its image files not opened yet.

    Args:
        fetch: whether it may be downloaded or unpacked where it is not there yet.

    Raises:
        ConfigError, DataError: wrong arguments, or a data set that is missing or not what it should be.
        NotFetchedError: it would have to be fetched.
    """
    loader = config.loader
    values = (loader.image_size, Path(loader.cache_dir).expanduser(), fetch and config.may_fetch)
    try:
        source = build(config.dataset, config.trust, **dict(zip(OFFERED, values, strict=True)))
    except OSError as error:
        raise DataError(f"dataset: {error.filename or 'a file'} cannot be read: {error.strerror or error}") from error
    if not isinstance(source, Source):
        raise ConfigError(f"dataset._target_={config.dataset.target} must return a Source, got {type(source).__name__}")
    check_channels(source, loader)
    check_changes(source, loader)
    return source


def check_channels(source: Source, loader: LoaderConfig) -> None:
    """Raises ConfigError where the normalisation is for another number of channels."""
    if len(loader.mean) != source.channels and loader.normalize == "given":
        raise ConfigError(
            f"dataset.mean and dataset.std need {source.channels} numbers, one a channel, got {loader.mean}"
        )


def check_changes(source: Source, loader: LoaderConfig) -> None:
    """Raises ConfigError where torchvision's changes do not take the data set's channels."""
    wanted = loader.augment.policy is not None or loader.augment.jitter is not None
    if wanted and source.channels not in (1, 3):
        raise ConfigError(
            f"dataset.augment.policy and dataset.augment.jitter take images of 1 or 3 channels, got {source.channels}"
        )


def fingerprint(*parts: NDArray[np.uint8] | str | int) -> str:
    """32 hex digits that name this content: shapes and bytes of arrays, and plain values, in this order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr(part.shape).encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def split_stratified(
    labels: NDArray[np.int64], *, every: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the train and of the held-out samples, each ascending: one in `every` is held out.

    The samples are put in order of class, at random inside a class, and each `every`th is taken: so every class gives
    its share to within one sample, and the same on every machine and version of numpy.
    """
    order = np.lexsort((seeds.keys(seed, index=np.arange(len(labels))), labels))
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[order[::every]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
