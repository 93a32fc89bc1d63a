"""Tiny images that are enlarged once and held in memory; what is larger is resized as it is fetched (geometry.py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ResizedSplit:
    """Samples that are held in memory, images (N, h, w, C) and labels (N,), fetched as (n, size, size, C).

    All are resized at the first fetch: who asks for no image waits for none.
    """

    raw: NDArray[np.uint8]
    labels: NDArray[np.int64]
    size: int

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        return resize(self.raw, self.size)

    def fetch(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[index]


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(N, H, W, C) -> (N, size, size, C), bilinear, antialiased where it shrinks."""
    if images.shape[1:3] == (size, size):
        return images
    import torch  # the one step of making a data set that needs it

    chunk = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
    resized = torch.nn.functional.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.round().to(torch.uint8).numpy().transpose(0, 2, 3, 1))
