"""Resizing whole arrays of images that are held in memory; files are resized by Pillow as they are decoded."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tinyexp.errors import DataError

_CHUNK = 4096  # images at a time: 60,000 as float32 at once would take four times the memory of the data set


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, C, H, W) -> (N, C, size, size), bilinear, antialiased where it shrinks.

    Raises DataError for a size below 1.
    """
    if size < 1:
        raise DataError(f"dataset.image_size must be at least 1 px, got {size}")
    if images.shape[2:] == (size, size):
        return images
    resized = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = torch.from_numpy(images[start : start + _CHUNK].astype(np.float32))
        chunk = functional.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        resized[start : start + _CHUNK] = chunk.round().numpy()
    return resized
