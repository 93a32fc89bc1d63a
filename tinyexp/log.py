"""One way for all that a run says: the logger, with two handlers, the terminal's and run.log's.

A record may carry something to draw (`extra=drawn(table)`): the terminal shows it, run.log has its text.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from tinyexp.heartbeat import rank_tag

_WIDE = 2000  # columns
_STYLES = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "bold red"}
_LOGGER = logging.getLogger("tinyexp")


def drawn(renderable: RenderableType) -> dict[str, Any]:
    """For `extra`: what the terminal draws instead of the message."""
    return {"renderable": renderable}


ALWAYS = logging.CRITICAL + 1  # the level of what is said whatever log.level is: a run's last line
logging.addLevelName(ALWAYS, "RESULT")
FILE_ONLY = {"file_only": True}  # for `extra`: the door tells the terminal itself


def plain_text(renderable: RenderableType, width: int = 120) -> str:
    """What a renderable looks like without a terminal."""
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, force_terminal=False).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n"))


class TerminalHandler(logging.Handler):
    """Messages as plain lines, never wrapped, on the console that also has the live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._tag = f"{rank_tag().strip()} ".lstrip()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False):
            return
        renderable = getattr(record, "renderable", None)
        if renderable is None or not self._console.is_terminal:
            mark = f"{record.levelname.lower()}: " if record.levelno in (logging.WARNING, logging.ERROR) else ""
            renderable = Text(self._tag + mark + record.getMessage(), style=_STYLES.get(record.levelno, ""))
        try:
            self._console.print(renderable, soft_wrap=isinstance(renderable, Text), highlight=False)
        except (OSError, SystemExit):  # rich's way with a pipe whose reader is gone is to exit
            leave_terminal()


class RunLogHandler(logging.FileHandler):
    """run.log: time, level, module and line. A full disk is told once and does not stop the training."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(module)s:%(lineno)d %(message)s"))
        self._failed = False

    def format(self, record: logging.LogRecord) -> str:
        text, message = super().format(record), record.getMessage()
        return text.replace(message, f"\n{message}", 1) if "\n" in message else text

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            _LOGGER.warning("%s can no longer be written; the training goes on", self.baseFilename)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was told then
            super().close()


def make_console() -> Console:
    """For a command that prints and ends: nothing is cut or wrapped where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def start_terminal(level: str) -> Console:
    """Show the logger's messages on the terminal from `level` on; of ranks other than 0, warnings and errors alone."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the signs of a box
    console = Console(soft_wrap=False, highlight=False)
    stop_logging()
    wanted = logging.getLevelName(level.upper())
    _LOGGER.setLevel(max(wanted, logging.WARNING) if rank_tag() else wanted)
    _LOGGER.propagate = False
    _LOGGER.addHandler(TerminalHandler(console))
    return console


def start_run_log(path: Path) -> None:
    """Write the logger's messages to a file as well."""
    _LOGGER.addHandler(RunLogHandler(path))


def leave_terminal() -> None:
    """The terminal is gone: what else would be said there goes nowhere, and the training goes on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.__stdout__.fileno() if sys.__stdout__ else 1)
    os.close(nowhere)
    _LOGGER.warning("the terminal can no longer be written; the training goes on")


@contextlib.contextmanager
def terminal(level: str) -> Iterator[None]:
    """start_terminal for as long as it is entered."""
    start_terminal(level)
    try:
        yield
    finally:
        stop_logging()


def stop_logging() -> None:
    """Close all handlers, and leave the logger as it was found."""
    _LOGGER.propagate = True
    _LOGGER.setLevel(logging.NOTSET)
    for handler in list(_LOGGER.handlers):
        _LOGGER.removeHandler(handler)
        handler.close()
