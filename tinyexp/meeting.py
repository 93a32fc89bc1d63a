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
        self._step = self._last = step  # the latest, and that of the last meeting
        self._ahead = 1  # steps from a meeting to the next
        self._since = time.monotonic()

    def is_at(self, step: int) -> bool:
        self._step = step
        return step >= self._last + self._ahead

    def agree(self, dist: Dist, *wishes: bool) -> list[bool]:
        """Which of these does any rank wish? And when to meet next, which rank 0 says.

        All ranks may meet sooner than was said, at an epoch's end.
        """
        if dist.world == 1:
            return list(wishes)
        ahead = self._propose() if dist.rank == 0 else 0
        *counts, self._ahead = dist.sum(torch.tensor([*map(int, wishes), ahead])).tolist()
        self._last = self._step
        self._since = time.monotonic()
        return [count > 0 for count in counts]

    def _propose(self) -> int:
        """In how many steps to meet again: at most at twice the distance of before, since a first step takes longer."""
        done = self._step - self._last
        seconds = max(1e-9, time.monotonic() - self._since)
        return max(1, min(2 * self._ahead, round(_PERIOD * done / seconds))) if done else self._ahead
