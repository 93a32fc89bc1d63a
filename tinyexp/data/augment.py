"""Random changes of train images that have one size already, whole uint8 batches at a time.

What an image gets follows from its own draws, in [0, 1), whichever process or rank makes it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyexp.config import AugmentConfig

_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's RandomErasing
_ERASE_TRIES = 10
_IN_CACHE = 2**18  # bytes
_kept = threading.local()
ERASE_DRAWS = 2 * _ERASE_TRIES + 3


def pad_and_crop(images: NDArray[np.uint8], draws: NDArray[np.float64], padding: int) -> NDArray[np.uint8]:
    """(n, H, W, C) moved by up to `padding` px down and right or up and left (n, 2), black coming in at the edge."""
    count, height, width, channels = images.shape
    padded, windows = _black(count, (height, width * channels), (padding, padding * channels))
    inside = slice(padding * channels, (padding + width) * channels)
    padded[:count, padding : padding + height, inside] = images.reshape(count, height, width * channels)
    top, left = (draws * (2 * padding + 1)).astype(np.int64).T
    cut: NDArray[np.uint8] = windows[np.arange(count), top, left * channels]
    return cut.reshape(images.shape)


def _black(count: int, inside: tuple[int, int], edge: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Room for at least `count` padded images, black at the edge, and its windows of the size inside.

    Each thread's is kept: making it anew takes four times as long as the cropping.
    """
    if getattr(_kept, "sizes", None) != (inside, edge) or len(_kept.frame) < count:
        _kept.sizes = inside, edge
        _kept.frame = np.zeros((count, *(size + 2 * each for size, each in zip(inside, edge, strict=True))), np.uint8)
        _kept.windows = np.lib.stride_tricks.sliding_window_view(_kept.frame, inside, axis=(1, 2))
    return _kept.frame, _kept.windows


def flip(images: NDArray[np.uint8], draws: NDArray[np.float64], probability: float) -> NDArray[np.uint8]:
    """(n, H, W, C) with those mirrored left-right, in place, whose draw (n,) is below the probability."""
    chosen = np.flatnonzero(draws < probability)
    count = max(1, _IN_CACHE // max(1, images[:1].size))
    for first in range(0, len(chosen), count):
        part = chosen[first : first + count]
        images[part] = torch.from_numpy(images[part]).flip(2).numpy()  # seven times as fast as numpy's view copied
    return images


def erase(
    images: NDArray[np.uint8], draws: NDArray[np.float64], probability: float, fill: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(n, H, W, C) with a rectangle filled (C,), in place: torchvision's RandomErasing; draws (n, ERASE_DRAWS)."""
    height, width = images.shape[1:3]
    low, high = map(math.log, _ERASE_RATIO)
    share = _ERASE_SCALE[0] + draws[:, :_ERASE_TRIES] * (_ERASE_SCALE[1] - _ERASE_SCALE[0])
    aspect = np.exp(low + draws[:, _ERASE_TRIES : 2 * _ERASE_TRIES] * (high - low))  # height / width
    tall = np.rint(np.sqrt(height * width * share * aspect)).astype(np.int64)
    wide = np.rint(np.sqrt(height * width * share / aspect)).astype(np.int64)
    fits = (tall < height) & (wide < width)
    for row in np.flatnonzero((draws[:, -1] < probability) & fits.any(1)):
        first = fits[row].argmax()
        box_height, box_width = tall[row, first], wide[row, first]
        top = int(draws[row, -3] * (height - box_height + 1))
        left = int(draws[row, -2] * (width - box_width + 1))
        images[row, top : top + box_height, left : left + box_width] = fill
    return images


class Policy:
    """torchvision's RandAugment, TrivialAugment and ColorJitter, image by image, each under its own seed.

    They draw from torch's global generator, so that no other thread may draw meanwhile.
    """

    def __init__(self, augment: AugmentConfig) -> None:
        self._augment = augment

    @property
    def wanted(self) -> bool:
        return self._augment.policy is not None or self._augment.jitter is not None

    def __call__(self, images: NDArray[np.uint8], seeds: NDArray[np.uint64]) -> NDArray[np.uint8]:
        """(n, H, W, C) changed in place; seeds (n,)."""
        for row, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)
            image = torch.from_numpy(images[row]).permute(2, 0, 1)
            for change in self._changes:
                image = change(image)
            images[row] = image.permute(1, 2, 0).numpy()
        return images

    @cached_property
    def _changes(self) -> list[Callable[[Tensor], Tensor]]:
        from torchvision.transforms import v2  # a second, and few runs need it

        augment = self._augment
        changes: list[Callable[[Tensor], Tensor]] = []
        if augment.policy == "randaugment":
            changes.append(v2.RandAugment(augment.num_ops, augment.magnitude))
        elif augment.policy == "trivialaugment":
            changes.append(v2.TrivialAugmentWide())
        if augment.jitter is not None:
            changes.append(v2.ColorJitter(*augment.jitter))
        return changes
