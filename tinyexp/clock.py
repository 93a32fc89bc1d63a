"""Where the time of a run goes: each moment belongs to exactly one section."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_END = object()


class Clock:
    """Sections, in seconds: start-up, data (waiting for it), train, val, save, and whatever else is named."""

    def __init__(self, section: str) -> None:
        self.seconds: dict[str, float] = {}
        self._section = section
        self._since = self.began = time.perf_counter()

    def switch(self, section: str) -> str:
        """From now on time is `section`'s; returns whose it was."""
        now = time.perf_counter()
        before = self._section
        self.seconds[before] = self.seconds.get(before, 0.0) + now - self._since
        self._section, self._since = section, now
        return before

    @contextmanager
    def within(self, section: str) -> Iterator[None]:
        before = self.switch(section)
        try:
            yield
        finally:
            self.switch(before)

    def waiting(self, items: Iterable[T], section: str) -> Iterator[T]:
        """The same items; waiting for one is the section `data`, using it is `section`."""
        iterator = iter(items)
        outside = self.switch("data")
        try:
            while (item := next(iterator, _END)) is not _END:
                self.switch(section)
                yield item  # type: ignore[misc]
                self.switch("data")
        finally:
            self.switch(outside)

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.began


class Span:
    """Images, seconds and the share of waiting since it was made: the time fields of a row."""

    def __init__(self, clock: Clock, images: int = 0) -> None:
        """`images`: how many a count has that goes on from before (a resumed epoch's)."""
        self._clock, self._images = clock, images
        self._began, self._waited = clock.total(), clock.seconds.get("data", 0.0)

    def fields(self, images: int) -> dict[str, float]:
        """`images` seen by now. These fields alone differ between a cut and an uncut run."""
        seconds = max(1e-9, self._clock.total() - self._began)
        waited = self._clock.seconds.get("data", 0.0) - self._waited
        return {
            "images_per_second": round((images - self._images) / seconds, 1),
            "data_wait": round(waited / seconds, 4),
            "seconds": round(seconds, 3),
        }
