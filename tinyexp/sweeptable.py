"""A sweep's jobs as a table: live on a terminal, and whole at its end."""

from __future__ import annotations

import time
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tinyexp.console import duration
from tinyexp.job import Job
from tinyexp.sheet import short_names
from tinyexp.sweep import Sweep

_STYLES = {
    "running": "cyan",
    "finished": "green",
    "waiting": "dim",
    "not started": "dim",
    "interrupted": "yellow",
    "pruned": "yellow",
}
_MARGIN = 6  # lines of the terminal that the live table leaves free


class SweepTable:
    """A context: on a terminal the table is redrawn while the jobs run."""

    def __init__(self, console: Console, sweep: Sweep, total: int) -> None:
        """`total`: jobs that there will be."""
        self._sweep, self._console, self._total = sweep, console, total
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> SweepTable:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """The table as it is now, around the first job that runs."""
        if self._live:
            jobs = self._sweep.jobs
            room = max(3, self._console.height - _MARGIN)
            running = next((place for place, job in enumerate(jobs) if job.status == "running"), 0)
            first = max(0, min(running - room // 2, len(jobs) - room))
            done = [job for job in jobs if job.code is not None]
            line = Text(f"{len(done)}/{self._total} jobs", style="bold")
            line.append(self._left(len(done), sum(job.before for job in done)), style="magenta")
            self._live.update(Group(self.drawing(first, first + room), line), refresh=True)

    def drawing(self, first: int = 0, end: int | None = None) -> Table:
        """The rows of some jobs, or of all."""
        keys = list(dict.fromkeys(key for job in self._sweep.jobs for key in job.label))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in ("job", *short_names(keys).values()):
            table.add_column(name)
        table.add_column("status", overflow="fold")
        for name in ("epoch", "best top1", "time"):
            table.add_column(name, justify="right")
        for job in self._sweep.jobs[first:end]:
            status = Text(job.describe(), style=_STYLES.get(job.status, "bold red"))
            values = (job.label.get(key, "") for key in keys)
            spent = duration(job.seconds) if job.seconds else ""
            table.add_row(str(job.number), *values, status, *_progress(job), spent)
        return table

    def _left(self, done: int, before: int) -> str:
        """How long the rest may take, by those that this process has done."""
        if done == before:
            return ""
        return f"  ETA {duration((time.monotonic() - self._began) / (done - before) * (self._total - done))}"


def job_line(job: Job, total: int) -> str:
    """What became of a job, in one line; what a crashed one said last, where it could write no log."""
    values = "".join(f" {key}={value}" for key, value in job.label.items())
    _, best = _progress(job)
    scores = f", best top1 {best}" if best else ""
    said = f": {job.last_words}" if job.code and job.last_words else ""
    spent = "" if job.before else f" in {duration(job.seconds)}"
    return f"job {job.number}/{total}{values}: {job.describe()}{spent}{scores}{said}"


def _progress(job: Job) -> tuple[str, str]:
    """Epochs done and the best top1 so far, as the run's own summary says."""
    if job.status in ("waiting", "not started"):
        return "", ""
    summary = job.run.summary
    best = summary.get("best") or {}
    return f"{summary.get('epochs', 0)}/{job.epochs}", f"{best['top1']:.4f}" if "top1" in best else ""
