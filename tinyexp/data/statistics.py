"""Mean and standard deviation of a data set's colours, for its normalisation."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyexp.cached import cached
from tinyexp.config import LoaderConfig
from tinyexp.data.filesplit import FileSplit
from tinyexp.data.source import Source, Split
from tinyexp.data.store import StoredSplit, store_key

_MOST = 10_000  # images looked at, spread evenly: the third digit no longer moves
_CHUNK = 256

Channels = tuple[float, ...]  # one number each

log = logging.getLogger(__name__)


def normalisation(source: Source, loader: LoaderConfig) -> tuple[Channels, Channels]:
    """(mean, std), fractions of 255, one a channel: those given, or under dataset.normalize=auto the train images'."""
    if loader.normalize == "given":
        return loader.mean, loader.std
    folder = Path(loader.cache_dir).expanduser() / "statistics"
    kept = cached(key=["store", "count", "channels", "most"], ignore=["split"], folder=folder)
    split = source.train
    if isinstance(split, (StoredSplit, FileSplit)):
        store = split.folder.name if isinstance(split, StoredSplit) else store_key(split)
        mean, std = kept(_mean_and_std)(split, store, len(split.labels), source.channels, _MOST)
    else:  # in memory, and of whatever a user's own function made of it
        mean, std = _mean_and_std(split, "", len(split.labels), source.channels, _MOST)
    log.info("dataset.normalize=auto: mean %s, std %s", *(", ".join(f"{x:.4f}" for x in each) for each in (mean, std)))
    return mean, std


def _mean_and_std(split: Split, store: str, count: int, channels: int, most: int) -> tuple[Channels, Channels]:
    """Exact, from counts of each value 0..255, over `count` samples or as many as `most`, spread evenly."""
    index = np.arange(min(count, most)) * count // min(count, most)
    counts = np.zeros((channels, 256), np.int64)
    for first in range(0, len(index), _CHUNK):
        images = split.fetch(index[first : first + _CHUNK])
        for pixels in [images] if isinstance(images, np.ndarray) else images:
            counts += _count(pixels.reshape(-1, channels))
    values = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def _count(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(n, C) -> (C, 256): how often each value comes."""
    return np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
