"""mixup (Zhang and others, arXiv:1710.09412) and cutmix (Yun and others, arXiv:1905.04899) of whole batches.

Each image is mixed with its neighbour in the step's order, which is random, so that a rank needs no more than one image
beside its own on each side, and any number of ranks makes the same batches.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray

from tinyexp import seeds
from tinyexp.config import AugmentConfig

_MIX = 4  # under this number it draws, as transform.py's changes under theirs


def wanted(augment: AugmentConfig) -> bool:
    return augment.mixup > 0 or augment.cutmix > 0


def with_partners(begin: int, end: int, total: int) -> tuple[int, int]:
    """The places in a step's order that a rank must have to mix those of begin..end: its own, and their neighbours."""
    return begin - begin % 2, min(total, end + end % 2)


def mix(
    images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int, augment: AugmentConfig, key: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(n, H, W, C) and (n,), beginning at an even place of the step -> mixed images, and labels (n, num_classes).

    One share and one box a step, as in both papers; `key`: seed, epoch and step. A last one without a neighbour stays.
    """
    draw = random.Random(seeds.key(*key, _MIX))
    cut = augment.cutmix > 0 and (augment.mixup == 0 or draw.random() < 0.5)
    alpha = augment.cutmix if cut else augment.mixup
    share = draw.betavariate(alpha, alpha)
    count = len(images)
    partner = np.arange(count) ^ 1
    partner[partner >= count] = count - 1
    if cut:
        top, bottom, left, right = _box(draw, 1 - share, images.shape[1], images.shape[2])
        mixed = images.copy()
        mixed[:, top:bottom, left:right] = images[partner, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[1] * images.shape[2])
    else:
        weight = round(share * 256)
        share = weight / 256
        own = images.astype(np.uint16)
        mixed = ((own * weight + own[partner] * (256 - weight) + 128) >> 8).astype(np.uint8)
    soft = np.zeros((count, num_classes), np.float32)
    rows = np.arange(count)
    soft[rows, labels] = share
    np.add.at(soft, (rows, labels[partner]), np.float32(1 - share))
    return mixed, soft


def _box(draw: random.Random, share: float, height: int, width: int) -> tuple[int, int, int, int]:
    """A box of this share of the area, its centre anywhere, cut off at the edges: top, bottom, left, right."""
    side = math.sqrt(share) / 2
    centre_y, centre_x = draw.randrange(height), draw.randrange(width)
    half_height, half_width = int(side * height), int(side * width)
    return (
        max(0, centre_y - half_height),
        min(height, centre_y + half_height),
        max(0, centre_x - half_width),
        min(width, centre_x + half_width),
    )
