"""Whether two samples are of one distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def kolmogorov_smirnov(mine: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest distance of two samples' distribution functions."""
    points = np.concatenate([mine, theirs])
    shares = (np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (mine, theirs))
    return float(np.abs(next(shares) - next(shares)).max())


def ks_limit(count: int, alarm: float = 1e-8) -> float:
    """What two samples of `count` pass with this probability though they are of one distribution."""
    return math.sqrt(-math.log(alarm / 2) / count)
