"""A bar on the terminal while a data set is made ready; nothing where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_REFRESH = 0.1  # seconds


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Call what it gives with how many are done, and of how many."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # drawn by who calls, not by a thread of rich's: processes are forked meanwhile
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        task, due = progress.add_task(what, total=None), 0.0

        def show(done: int, total: int) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _REFRESH
                progress.update(task, completed=done, total=total, refresh=True)

        yield show
