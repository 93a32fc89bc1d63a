"""What a run measures, on disk: metrics.jsonl, the same as TensorBoard's curves, summary.json, confusion.json.

A full disk is told once and does not stop the training; a checkpoint that cannot be written does.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyexp.board import Board
from tinyexp.files import write_json
from tinyexp.lenient import Lenient

_PLAIN = ("phase", "epoch", "step")  # fields of a row that are not drawn as curves


class Recorder:
    """Appends rows. `lines` is how many metrics.jsonl has, which a checkpoint keeps to cut the file to on resume."""

    def __init__(self, directory: Path, board: Board | None, *, lines: int, step: int | None) -> None:
        """Go on after the first `lines` lines.

        Args:
            board: where the rows are drawn as curves; None: nowhere.
            step: a resumed run's, else None.
        """
        self._directory = directory
        self._board = board
        self._path = directory / "metrics.jsonl"
        kept = _cut(self._path, lines)
        self.lines = len(kept)
        self._lenient = Lenient(directory)
        self._file = self._path.open("ab", buffering=0)
        if step is not None:
            self._draw_again(kept, step)

    def row(self, row: dict[str, Any]) -> None:
        """One object, one line, one write; and a point on each of the phase's curves."""
        self.lines += 1
        self._lenient("metrics.jsonl", lambda: self._append(f"{json.dumps(row, allow_nan=False)}\n".encode()))
        self._draw(row)

    def summary(self, summary: dict[str, Any]) -> None:
        """Written whole each time, so that one which failed is no reason not to try the next."""
        self._lenient("summary.json", lambda: write_json(self._directory / "summary.json", summary), again=True)

    def confusion(self, epoch: int, classes: Sequence[str], counts: Tensor) -> None:
        """The best epoch's confusion matrix, (classes, classes) int64 with a row a label: what is not 0 of it."""
        places = counts.nonzero()  # (cells, 2)
        cells = torch.cat([places, counts[places[:, 0], places[:, 1], None]], dim=1)
        content = {"epoch": epoch, "classes": list(classes), "counts": cells.tolist()}
        self._lenient("confusion.json", lambda: write_json(self._directory / "confusion.json", content), again=True)

    def sync(self) -> None:
        """To the disk, before a checkpoint that counts on these lines."""
        self._lenient("metrics.jsonl", lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        self._lenient("metrics.jsonl", self._file.close)

    def _append(self, line: bytes) -> None:
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _draw_again(self, kept: list[bytes], step: int) -> None:
        """The rows of the checkpoint's own step: TensorBoard forgets by step alone, and some of it may be of later."""
        rows = itertools.takewhile(lambda row: row["step"] == step, map(json.loads, reversed(kept)))
        for row in reversed(list(rows)):
            self._draw(row)

    def _draw(self, row: dict[str, Any]) -> None:
        if self._board is None:
            return
        for name, value in row.items():
            if name not in _PLAIN:
                self._board.scalar(f"{row['phase']}/{name}", value, row["step"])


def _cut(path: Path, lines: int) -> list[bytes]:
    """Keep the first `lines` whole lines of a file, which may end in a torn one; returns them."""
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1][:lines]
    os.truncate(path, sum(len(line) + 1 for line in whole))
    return whole
