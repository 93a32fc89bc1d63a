"""Resizing whole arrays of images that are held in memory; files are resized by Pillow as they are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tinyexp.errors import DataError

_CHUNK = 4096  # images at a time: 60,000 as float32 at once would take four times the memory of the data set


@dataclass(frozen=True, eq=False)
class ResizedSplit:
    """Samples that are held in memory, images (N, C, h, w) and labels (N,), fetched as (n, C, size, size).

    All are resized at the first fetch: who asks for no image waits for none.
    """

    raw: NDArray[np.uint8]
    labels: NDArray[np.int64]
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"dataset.image_size must be at least 1 px, got {self.size}")

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        return resize(self.raw, self.size)

    def fetch(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[index]


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, C, H, W) -> (N, C, size, size), bilinear, antialiased where it shrinks."""
    if images.shape[2:] == (size, size):
        return images
    import torch  # the one step of making a data set that needs it

    resized = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = torch.from_numpy(images[start : start + _CHUNK].astype(np.float32))
        chunk = torch.nn.functional.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        resized[start : start + _CHUNK] = chunk.round().numpy()
    return resized
