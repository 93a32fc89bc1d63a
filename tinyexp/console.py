"""What a person sees of a run: the config as a tree, a live line, a row an epoch, and a box of where the time went."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from tinyexp.log import leave_terminal

_REFRESH = 0.25  # seconds between two pictures of the live line
_BAR = 16  # characters
_PLAIN = 30.0  # seconds between two plain lines of progress, where there is no terminal
# 80 columns with the mark of the best
_COLUMNS = "{:>7} │ {:>7} {:>6} │ {:>7} {:>6} {:>6} │ {:>7} {:>7} {:>6}"
_NAMES = ("epoch", "train", "top1", "val", "top1", "top5", "lr", "img/s", "time")

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """Where a phase is, and its latest figures."""

    phase: str
    epoch: int
    epochs: int
    done: int  # steps, or batches of val
    total: int
    left: float | None  # seconds to the end of the run
    row: Mapping[str, Any]  # the latest of metrics.jsonl; empty before the first


class Display:
    """The live line. On a terminal it is redrawn four times a second; elsewhere a plain line is logged now and then."""

    def __init__(self, console: Console) -> None:
        live = console.is_terminal and _log.isEnabledFor(logging.INFO)
        self._live = Live(console=console, auto_refresh=False, transient=True) if live else None
        self._next = time.monotonic() + (_REFRESH if self._live else _PLAIN)
        if self._live:
            self._live.start()

    def due(self) -> bool:
        """Is it time to show something? So that a step that is not shown costs a comparison."""
        return time.monotonic() >= self._next

    def show(self, progress: Progress) -> None:
        if self._live:
            self._next = time.monotonic() + _REFRESH
            try:
                self._live.update(_live_line(progress), refresh=True)
            except (OSError, SystemExit):  # rich's way with a terminal that is gone is to exit
                leave_terminal()
        else:
            self._next = time.monotonic() + _PLAIN
            _log.info(_plain_line(progress))

    def close(self) -> None:
        if self._live:
            self._live.stop()


def config_tree(title: str, config: Mapping[str, Any]) -> Tree:
    """One branch a group, its keys on one line."""
    tree = Tree(Text(title, style="bold"), guide_style="dim")
    width = max(len(name) for name in config)
    for name, values in config.items():
        line = Text(f"{name:<{width}}  ", style="cyan")
        if isinstance(values, Mapping):
            rest = dict(values)
            if target := rest.pop("_target_", None):
                line.append(f"{visible(str(target))}  ", style="green")
            line.append(" ".join(f"{key}={_spell(value)}" for key, value in rest.items()), style="default")
        else:
            line.append(_spell(values), style="default")
        tree.add(line)
    return tree


def visible(text: str, keep: str = "") -> str:
    """Without the signs that steer a terminal: what a file of somebody else says is only shown."""
    return "".join(letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text)


def epoch_header() -> Text:
    names = _COLUMNS.format(*_NAMES)
    rule = "".join("┼" if letter == "│" else "─" for letter in names)
    return Text(f"{names}\n{rule}", style="dim")


def epoch_row(train: Mapping[str, Any], val: Mapping[str, Any], epochs: int, best: bool) -> Text:
    """The rows of metrics.jsonl of an epoch, as one line of the table."""
    line = _COLUMNS.format(
        f"{train['epoch']}/{epochs}",
        f"{train['loss']:.4f}",
        f"{train['top1']:.4f}",
        f"{val['loss']:.4f}",
        f"{val['top1']:.4f}",
        f"{val['top5']:.4f}" if "top5" in val else "",
        f"{train['lr']:.1e}",
        f"{train['images_per_second']:,.0f}",
        duration(train["seconds"] + val["seconds"]),
    )
    return Text(line + (" ★ best" if best else ""), style="bold green" if best else "")


def closing_box(title: str, seconds: Mapping[str, float]) -> Panel:
    """Where the time went, the largest part first."""
    total = sum(seconds.values()) or 1.0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        bar = ProgressBar(total=1.0, completed=spent / total, width=24, complete_style="cyan", finished_style="cyan")
        table.add_row(name, f"{duration(spent):>8}", f"{spent / total:>4.0%}", bar)
    return Panel(table, title=title, box=box.ROUNDED, expand=False)


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3:05', '1:02:05'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _live_line(progress: Progress) -> Text:
    """One line, cut where the terminal ends."""
    filled = round(_BAR * progress.done / max(1, progress.total))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{progress.epoch}/{progress.epochs} ", style="bold").append(f"{progress.phase:<5} ", style="cyan")
    line.append("━" * filled, style="green").append("━" * (_BAR - filled), style="dim")
    left = "" if progress.left is None else f"  ETA {duration(progress.left)}"
    line.append(f" {progress.done}/{progress.total}").append(left, style="magenta")
    return line.append(f"  {_figures(progress.row)}")


def _plain_line(progress: Progress) -> str:
    place = f"epoch {progress.epoch}/{progress.epochs} {progress.phase} {progress.done}/{progress.total}"
    left = "" if progress.left is None else f"ETA {duration(progress.left)}"
    return "  ".join(part for part in (place, _figures(progress.row), left) if part)


def _figures(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    return (
        f"loss {row['loss']:.4f}  top1 {row['top1']:.4f}  lr {row['lr']:.2e}  "
        f"{row['images_per_second']:,.0f} images/s  data {row['data_wait']:.0%}"
    )


def _spell(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}={_spell(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return visible(str(value))
