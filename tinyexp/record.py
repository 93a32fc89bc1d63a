"""What a run measures, on disk: metrics.jsonl, TensorBoard's events, summary.json, confusion.json.

A full disk is told once and does not stop the training; a checkpoint that cannot be written does.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tinyexp.config import TensorBoardConfig, flatten
from tinyexp.errors import TinyexpError
from tinyexp.files import write_json

_PLAIN = ("phase", "epoch", "step")  # fields of a row that are not drawn as curves
_log = logging.getLogger(__name__)


class Recorder:
    """Appends rows. `lines` is how many metrics.jsonl has, which a checkpoint keeps to cut the file to on resume."""

    def __init__(self, directory: Path, tensorboard: TensorBoardConfig, *, lines: int, step: int | None) -> None:
        """Go on after the first `lines` lines, with TensorBoard as it was then; `step`: a resumed run's, else None."""
        self._directory = directory
        self._tensorboard = tensorboard
        self._path = directory / "metrics.jsonl"
        kept = _cut(self._path, lines)
        self.lines = len(kept)
        self._failed: set[str] = set()
        self._file = self._path.open("ab", buffering=0)
        on = tensorboard.scalars or tensorboard.hparams
        self._events = SummaryWriter(str(directory / "tb"), purge_step=step) if on else None
        if self._events and tensorboard.scalars and step is not None:
            self._draw_again(kept, step)

    def row(self, row: dict[str, Any]) -> None:
        """One object, one line, one write; and a point on each of the phase's curves."""
        self.lines += 1
        self._try("metrics.jsonl", lambda: self._append(f"{json.dumps(row, allow_nan=False)}\n".encode()))
        if self._events and self._tensorboard.scalars:
            self._try("tb/", lambda: self._draw(row))

    def hparams(self, config: dict[str, Any], best: dict[str, Any]) -> None:
        """The config and the final scores as one row of TensorBoard's HPARAMS table."""
        if self._events is None or not self._tensorboard.hparams:
            return
        flat = {
            key: value if isinstance(value, (bool, int, float)) else str(value)
            for key, value in flatten(config).items()
        }
        summaries = hparams(flat, {f"best/{name}": best[name] for name in ("top1", "loss")})
        writer = self._events._get_file_writer()  # SummaryWriter.add_hparams would make a second run of it

        def write() -> None:
            for summary in summaries:
                writer.add_summary(summary)
            for name in ("top1", "loss"):
                self._events_scalar(f"best/{name}", best[name], best["step"])

        self._try("tb/", write)

    def summary(self, summary: dict[str, Any]) -> None:
        """Written whole each time, so that one which failed is no reason not to try the next."""
        self._try("summary.json", lambda: write_json(self._directory / "summary.json", summary), again=True)

    def confusion(self, epoch: int, classes: Sequence[str], counts: Tensor) -> None:
        """The best epoch's confusion matrix, (classes, classes) int64 with a row a label: what is not 0 of it."""
        places = counts.nonzero()  # (cells, 2)
        cells = torch.cat([places, counts[places[:, 0], places[:, 1], None]], dim=1)
        content = {"epoch": epoch, "classes": list(classes), "counts": cells.tolist()}
        self._try("confusion.json", lambda: write_json(self._directory / "confusion.json", content), again=True)

    def sync(self) -> None:
        """To the disk, before a checkpoint that counts on these lines."""
        self._try("metrics.jsonl", lambda: os.fsync(self._file.fileno()))
        if self._events:
            self._try("tb/", self._events.flush)

    def close(self) -> None:
        self._try("metrics.jsonl", self._file.close)
        if self._events:
            self._try("tb/", self._events.close)

    def _append(self, line: bytes) -> None:
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _draw_again(self, kept: list[bytes], step: int) -> None:
        """The rows of the checkpoint's own step: TensorBoard forgets by step alone, and some of it may be of later."""
        rows = itertools.takewhile(lambda row: row["step"] == step, map(json.loads, reversed(kept)))
        for row in reversed(list(rows)):
            self._try("tb/", functools.partial(self._draw, row))

    def _draw(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name not in _PLAIN:
                self._events_scalar(f"{row['phase']}/{name}", value, row["step"])

    def _events_scalar(self, tag: str, value: float, step: int) -> None:
        assert self._events is not None
        self._events.add_scalar(tag, value, step)

    def _try(self, what: str, write: Callable[[], object], again: bool = False) -> None:
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


def _cut(path: Path, lines: int) -> list[bytes]:
    """Keep the first `lines` whole lines of a file, which may end in a torn one; returns them."""
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1][:lines]
    os.truncate(path, sum(len(line) + 1 for line in whole))
    return whole
