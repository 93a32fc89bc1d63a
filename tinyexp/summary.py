"""summary.json: what a run is, how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyexp.engine import TrainState
from tinyexp.errors import Interrupted, TinyexpError, exit_code


class Summary:
    """Written anew whenever the status is told."""

    def __init__(self, write: Callable[[dict[str, Any]], None], seconds: Callable[[], float]) -> None:
        self._write, self._seconds = write, seconds
        self._facts: dict[str, Any] = {}

    def add(self, **facts: Any) -> None:
        """What the next status is told with."""
        self._facts |= facts

    def count(self, state: TrainState) -> None:
        self.add(best=state.best, last=state.last, epochs=state.epoch, steps=state.step)

    def tell(self, status: str, code: int | None = None, error: str | None = None) -> None:
        self._facts |= {"status": status, "exit_code": code, "error": error}
        self._write(self._facts | {"seconds": round(self._seconds(), 3)})

    def fail(self, error: BaseException) -> None:
        name = "" if isinstance(error, TinyexpError) else f"{type(error).__name__}: "
        self.leave(exit_code(error), f"{name}{error}".removesuffix(": "))

    def leave(self, code: int, reason: str) -> None:
        self.tell("interrupted" if code == Interrupted.exit_code else "failed", code, reason)
