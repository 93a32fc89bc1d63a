"""Randomness as a function of where we are (seed, epoch, index, step), not of what was drawn before.

A cut run therefore resumes to the bit, and neither loader processes nor ranks change what is drawn. The hash is
splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). No torch here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer, elementwise; uint64 wraps around by itself."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(*parts: int) -> int:
    """One 64-bit number of several, such as (seed, epoch, step, slot); their order counts.

    In plain integers, since numpy takes ten times as long for a single number.
    """
    z = 0
    for part in parts:
        z = (z + (part + 1) * _GOLDEN) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return z


def keys(*parts: int, index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit number for each index (N,) under the same parts, all at once."""
    return _mix(np.uint64(key(*parts)) + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def uniform(*parts: int, index: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """(N, draws) numbers in [0, 1) for each index (N,): the draw d of an index depends on nothing but its own keys."""
    counter = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(keys(*parts, index=index)[:, None] + counter[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(*parts: int, size: int) -> NDArray[np.int64]:
    """A random order of range(size): the stable order of its keys, the same on every version of numpy."""
    return np.argsort(keys(*parts, index=np.arange(size, dtype=np.int64)), kind="stable")
