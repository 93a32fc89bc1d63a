"""Random changes of training images, whole uint8 batches at a time.

What a sample gets follows from (seed, epoch, index) alone, whichever process or rank makes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds


def augment(
    images: NDArray[np.uint8], index: NDArray[np.int64], *, seed: int, epoch: int, crop_padding: int, flip: bool
) -> NDArray[np.uint8]:
    """(N, C, H, W) and the samples' numbers (N,) -> the same shape, cropped and mirrored at random."""
    draws = seeds.uniform(seed, epoch, index=index, draws=3)
    if crop_padding:
        images = _pad_and_crop(images, draws[:, :2], crop_padding)
    if flip:
        images = np.where((draws[:, 2] < 0.5)[:, None, None, None], images[..., ::-1], images)
    return images


def _pad_and_crop(images: NDArray[np.uint8], draws: NDArray[np.float64], padding: int) -> NDArray[np.uint8]:
    """Shift each image by up to `padding` px in each direction (N, 2), black coming in at the edge."""
    _, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))  # (N, C, 2p+1, 2p+1, H, W)
    top, left = (draws * (2 * padding + 1)).astype(np.int64).T
    return windows[np.arange(len(images)), :, top, left]
