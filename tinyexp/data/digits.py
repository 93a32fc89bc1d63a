"""The 1,797 handwritten digits of UCI, 8x8, which come with the package: real data without a download.

Where digits.npz is from, its licence and how it was made stand in DIGITS.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinyexp.data.resize import ResizedSplit
from tinyexp.data.source import Source, fingerprint, split_stratified

_FILE = Path(__file__).with_name("digits.npz")
_WHITE = 16  # the files' values are 0..16: how many of 4x4 scanned pixels are ink
_HELD_OUT_EVERY = 5
_SPLIT_SEED = 0  # fixed: scores of two runs are of the same 360 images


def digits(*, image_size: int) -> Source:
    """Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), white on black.

    1,437 train and 360 val images, (image_size, image_size, 1), every class in its share.
    """
    with np.load(_FILE) as file:
        raw, raw_labels = file["images"], file["labels"]  # (1797, 8, 8) uint8 0..16, (1797,) uint8
    images = np.rint(raw[..., None] * (255 / _WHITE)).astype(np.uint8)
    labels = raw_labels.astype(np.int64)
    train, val = split_stratified(labels, every=_HELD_OUT_EVERY, seed=_SPLIT_SEED)
    return Source(
        classes=tuple("0123456789"),
        channels=1,
        train=ResizedSplit(images[train], labels[train], image_size),
        val=ResizedSplit(images[val], labels[val], image_size),
        fingerprint=fingerprint(raw, raw_labels, image_size),
        origin=str(_FILE),
    )
