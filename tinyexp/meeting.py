"""When ranks meet to agree: about once a second, counted in steps, since all ranks must meet at the same one.

A collective in each step would halve the speed of small models.
"""

from __future__ import annotations

import time

import torch

from tinyexp.dist import Dist

_PERIOD = 1.0  # seconds


class Meeting:
    """The next step to meet at; the first is the one after `step`, which tells how long steps are."""

    def __init__(self, step: int) -> None:
        self._last = step
        self._next = step + 1
        self._since = time.monotonic()

    def is_at(self, step: int) -> bool:
        return step >= self._next

    def agree(self, dist: Dist, *wishes: bool) -> list[bool]:
        """Which of these does any rank wish? And when to meet next, which rank 0 says."""
        if dist.world == 1:
            return list(wishes)
        ahead = self._propose() if dist.rank == 0 else 0
        *counts, ahead = dist.sum(torch.tensor([*map(int, wishes), ahead])).tolist()
        self._last, self._next = self._next, self._next + ahead
        self._since = time.monotonic()
        return [count > 0 for count in counts]

    def _propose(self) -> int:
        """In how many steps to meet again: at most at twice the distance of before, since a first step takes longer."""
        done = self._next - self._last
        seconds = max(1e-9, time.monotonic() - self._since)
        return max(1, min(2 * done, round(_PERIOD * done / seconds)))
