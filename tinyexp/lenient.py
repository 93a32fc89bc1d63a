"""Writes that may fail and stop nothing: told once for each file, which is left alone from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tinyexp.errors import TinyexpError

_log = logging.getLogger(__name__)


class Lenient:
    """What a run does not need in order to go on, written in its directory as long as the disk takes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._failed: set[str] = set()

    def __call__(self, what: str, write: Callable[[], object], again: bool = False) -> None:
        """A file that failed once is left alone, but for `again`: a line after a torn one would be lost with it."""
        if again or what not in self._failed:
            try:
                write()
            except (OSError, TinyexpError) as error:
                self._warn_once(what, error)

    def _warn_once(self, what: str, error: Exception) -> None:
        if what not in self._failed:
            self._failed.add(what)
            _log.warning("%s in %s can no longer be written (%s); the training goes on", what, self._directory, error)
