"""sweep.space: what a search may try of each key, and what random search draws of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyexp import seeds
from tinyexp.errors import ConfigError

_DIGITS = 4  # that count of a drawn number, so that it can be read and typed


@dataclass(frozen=True, kw_only=True)
class Range:
    """From `low` to `high`, both included; whole numbers where both ends are."""

    low: float
    high: float
    log: bool  # each power of ten as likely as the next

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def samples(self) -> tuple[float, ...]:
        """Values of which each must make a run."""
        return (self.low, self.high)

    def at(self, share: float) -> float:
        """The value that this share in [0, 1) of the range lies below."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = math.exp(math.log(low) + share * math.log(high / low)) if self.log else low + share * (high - low)
        return self.spelled(value)

    def spelled(self, value: float) -> float:
        """A value within the range as a run gets it."""
        rounded = round(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        return min(max(rounded, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    samples: tuple[Any, ...]

    def at(self, share: float) -> Any:
        return self.samples[int(share * len(self.samples))]


Space = dict[str, Range | Choice]


def read_space(values: Mapping[str, Any]) -> Space:
    """Raises ConfigError for what is neither a range nor a list of values."""
    return {key: _read(key, value) for key, value in values.items()}


def _read(key: str, value: Any) -> Range | Choice:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return Choice(tuple(value))
    rule = "a list of values, or {low: 1e-4, high: 1e-1}, with log: true for a range of powers"
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"sweep.space.{key} must be {rule}, got {value!r}")
    low, high, log = value["low"], value["high"], value.get("log", False)
    numbers = all(type(end) in (int, float) and math.isfinite(end) for end in (low, high))
    if not numbers or not isinstance(log, bool) or not low < high or (log and low <= 0):
        ends = "numbers, low below high, above 0 with log"
        raise ConfigError(f"sweep.space.{key} must be {rule}; its ends {ends}; got {value!r}")
    return Range(low=low, high=high, log=log)


def draw(space: Space, seed: int, trials: int) -> list[dict[str, Any]]:
    """The values of random search's trials, different from each other: fewer where the space has no more.

    A trial's follow from the seed and its number alone, so that more trials begin with the same.
    """
    found: list[dict[str, Any]] = []
    shares = seeds.uniform(seed, index=np.arange(100 * trials, dtype=np.int64), draws=len(space))
    for row in shares:
        values = {key: part.at(float(share)) for (key, part), share in zip(space.items(), row, strict=True)}
        if values not in found:
            found.append(values)
        if len(found) == trials:
            break
    return found
