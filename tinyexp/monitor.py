"""Which epoch is the best, and when to stop waiting for a better one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyexp.config import EarlyStop
from tinyexp.metrics import Scores


def rank(loss: float, top1: float, monitor: str) -> tuple[float, float]:
    """Larger is better; a tie in the one that `ckpt.monitor` names is broken by the other."""
    return (top1, -loss) if monitor == "val/top1" else (-loss, top1)


def is_better(scores: Scores, best: Mapping[str, Any] | None, monitor: str) -> bool:
    """Are these scores better than those of the best epoch so far?"""
    return best is None or rank(scores.loss, scores.top1, monitor) > rank(best["loss"], best["top1"], monitor)


def patience_spent(
    scores: Scores, mark: float | None, stale: int, monitor: str, early_stop: EarlyStop
) -> tuple[float, int]:
    """The value that counts as reached, and the epochs since: both anew where it was passed by min_delta."""
    value, _ = rank(scores.loss, scores.top1, monitor)
    return (value, 0) if mark is None or value > mark + early_stop.min_delta else (mark, stale + 1)
